"""What a step can do besides the paper's recipe, against computations without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.config import AverageConfig, BatchNormConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from resnet_jax.models import formulation, resnet
from resnet_jax.models.blocks import stack_blocks
from resnet_jax.models.stochastic_depth import StochasticDepth, stochastic_depth
from resnet_jax.training import averages, loss_scale
from resnet_jax.training.losses import losses
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import make_schedule
from resnet_jax.training.step import StepOptions, compile_train_step, make_step
from tests import helpers

BATCH, SIZE = 16, 8


def make(dtype=np.float64, group=None, scan=False):
    """A network, its optimizer and a state with random weights."""
    settings = ModelConfig(name="cifar_resnet14" if scan else "cifar_resnet8", scan_blocks=scan)
    model = resnet.build(settings, BatchNormConfig(group_size=group), 10).clone(dtype=dtype)
    optimizer = make_optimizer(OptimizerConfig())
    kept = np.float64 if dtype == np.float64 else np.float32
    variables = helpers.random_like(resnet.variable_shapes(model, (SIZE, SIZE, 3)), kept)
    state = helpers.state_of(variables, optimizer, [120, 110, 100], [60, 61, 62], kept)
    return model, optimizer, stack_blocks(state) if scan else state


def batch(order=None):
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    whole = {"image": images, "label": rng.randint(0, 10, BATCH).astype(np.int32)}
    return whole if order is None else {name: value[order] for name, value in whole.items()}


def one_step(made, given, devices=1, **options):
    model, optimizer, state = made
    mesh = parallel.make_mesh(devices)
    schedule = make_schedule(ScheduleConfig(boundaries=()), 0.125)
    step_fn = compile_train_step(make_step(model, optimizer, schedule, 0, StepOptions(**options)), mesh)
    return step_fn(parallel.put_replicated(state, mesh), parallel.put_batch(given, mesh, BATCH))


def assert_close(one, other, tolerance=1e-9):
    one, other = helpers.flat(one), helpers.flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(other[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(
    ("on_cpu", "devices"),
    [pytest.param(True, 1, marks=pytest.mark.slow), pytest.param(False, 1, marks=pytest.mark.slow), (True, 4)],
)
def test_micro_batches_give_the_gradient_of_the_batch(x64, monkeypatch, on_cpu, devices):
    monkeypatch.setattr(formulation, "on_cpu", lambda: on_cpu)
    state, metrics = one_step(make(), batch(), devices, accumulate=4)
    # In one pass: micro-batches of four as batch-norm groups of four, in the order of the rows that each one takes.
    order = np.arange(BATCH).reshape(4, 4).T.reshape(-1)
    want, want_metrics = one_step(make(group=4), batch(order))
    assert_close((want.params, want.opt_state), (state.params, state.opt_state))
    assert_close(want_metrics, metrics)
    # The running statistics follow one micro-batch after the other.
    model, _, start = make()
    stats = start.batch_stats
    for index in range(4):
        images = (batch()["image"][index::4] - start.pixels["mean"]) / start.pixels["std"]
        _, updated = model.apply({"params": start.params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"])
        stats = updated["batch_stats"]
    assert_close(stats, state.batch_stats)
    whole = one_step(make(), batch())[1]["loss"]
    assert abs(float(metrics["loss"]) - float(whole)) > 1e-4, "the case tests nothing"


def test_bce_against_numpy():
    rng = np.random.RandomState(0)
    logits, targets = rng.standard_normal((5, 7)), rng.dirichlet(np.ones(7), 5)

    def by_hand(targets):
        share = 1 / (1 + np.exp(-logits))
        return -(targets * np.log(share) + (1 - targets) * np.log(1 - share))

    def get(targets, **fields):
        return losses(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), LossConfig(**fields))

    np.testing.assert_allclose(get(targets, name="bce_mean"), by_hand(targets).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(get(targets, name="bce_sum"), by_hand(targets).sum(-1), rtol=1e-5)
    hard = (targets > 0.2).astype(float)
    assert hard.sum() > 5, "the case tests nothing"
    np.testing.assert_allclose(get(targets, name="bce_mean", target_threshold=0.2), by_hand(hard).mean(-1), rtol=1e-5)
    labels = np.arange(5)
    np.testing.assert_allclose(get(labels, name="bce_sum"), by_hand(np.eye(7)[labels]).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("ramp", [False, True])
def test_average_against_numpy(x64, ramp):
    config = AverageConfig(decay=0.75, ramp=ramp)
    model, optimizer, state = make()
    weights = lambda state: {"params": state.params, "batch_stats": state.batch_stats}  # noqa: E731
    state = state.replace(average=weights(state))
    want = helpers.flat(weights(state))
    for step in range(3):
        state, _ = one_step((model, optimizer, state), batch(), average=config)
        decay = min(0.75, (1 + step) / (10 + step)) if ramp else 0.75
        new = helpers.flat(weights(state))
        want = {name: decay * value + (1 - decay) * new[name] for name, value in want.items()}
        state = jax.device_get(state)
    got = helpers.flat(state.average)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert averages.averaged(state).params is state.average["params"]


def float16(scale):
    model, optimizer, state = make(np.float16)
    state = state.replace(average={"params": state.params, "batch_stats": state.batch_stats})
    scaling = dataclasses.replace(loss_scale.init(), scale=np.float32(scale), good=np.int32(7))
    return model, optimizer, state.replace(loss_scale=scaling)


def test_float16_follows_float32():
    average = AverageConfig(decay=0.5)
    start = make(np.float32)[2].params
    (half, metrics), (full, _) = one_step(float16(2**10), batch(), average=average), one_step(make(np.float32), batch())
    assert int(metrics["skipped"]) == 0
    assert (float(half.loss_scale.scale), int(half.loss_scale.good)) == (2**10, 8)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((half.params, half.batch_stats)))
    moved, wanted = (
        np.concatenate([(new - old).ravel() for new, old in zip(*map(jax.tree.leaves, (s.params, start)), strict=True)])
        for s in (half, full)
    )
    assert np.linalg.norm(moved - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("what", ["gradient", "image"])
def test_a_step_that_is_not_finite_changes_nothing_in_float16(what):
    model, optimizer, state = float16(2**24 if what == "gradient" else 2**10)
    if what == "image":
        state.pixels["mean"][0, 0, 1] = np.inf
    before = helpers.flat(state)
    after, metrics = one_step((model, optimizer, state), batch(), average=AverageConfig(decay=0.5))
    assert np.isfinite(metrics["loss"]) == (what == "gradient")
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    changed = {name for name, value in helpers.flat(after).items() if value.tobytes() != before[name].tobytes()}
    assert changed == {"step", "loss_scale/scale", "loss_scale/good", "loss_scale/skipped"}
    assert int(after.step) == 1
    assert float(after.loss_scale.scale) == (2**23 if what == "gradient" else 2**9)
    assert np.isfinite(metrics["parameter_norm"])


def test_the_loss_scale_over_many_steps():
    state, want = loss_scale.init(), (2.0**16, 0)
    for finite, times in ((True, 1999), (True, 1), (True, 3), (False, 2), (True, 2000)):
        for _ in range(times):
            state = jax.tree.map(np.asarray, UPDATE(state, np.bool_(finite)))
            scale, good = want
            good = good + 1 if finite else 0
            want = (scale * 2, 0) if good == 2000 else (scale if finite else scale / 2, good)
            assert (float(state.scale), int(state.good)) == want
        assert int(state.skipped) == (0 if finite else times)
    for _ in range(60):
        state = UPDATE(state, np.bool_(False))
    assert float(state.scale) == 1


UPDATE = jax.jit(loss_scale.update)


def test_stochastic_depth_draws():
    draw = jax.jit(StochasticDepth((0.1, 0.5, 0.8), seed=3), static_argnums=1)
    scales = np.stack([draw(jnp.int32(step), 64) for step in range(50)]).reshape(-1, 3)
    for column, rate in zip(scales.T, (0.1, 0.5, 0.8), strict=True):
        assert set(np.round(column, 4)) == {0, np.float32(round(1 / (1 - rate), 4))}
        assert (column == 0).mean() == pytest.approx(rate, abs=0.03)
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.1
    np.testing.assert_array_equal(draw(jnp.int32(4), 64), scales[256:320])
    assert (np.asarray(StochasticDepth((0.5,), seed=4)(jnp.int32(4), 64)) != StochasticDepth((0.5,), 3)(4, 64)).any()
    config = helpers.digits_config(model__name="cifar_resnet14", model__drop_path=0.6, seed=5)
    found = stochastic_depth(config)
    np.testing.assert_allclose(found.rates, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert found.seed == 5
    assert stochastic_depth(helpers.digits_config()) is None


def test_a_skipped_block_is_its_shortcut():
    model, _, state = make(np.float32)
    images = np.random.RandomState(1).standard_normal((4, SIZE, SIZE, 3)).astype(np.float32)
    scale = np.array([[1, 1, 1], [0, 1, 1], [1, 1.5, 0], [0, 0, 0]], np.float32)
    apply = jax.jit(lambda params, scale: model.apply(
        {"params": params, "batch_stats": state.batch_stats}, images, train=False, branch_scale=scale
    ))  # fmt: skip
    got = apply(state.params, scale)
    for row in range(4):
        # The same for all images: the last batch norm of the block has its scale and bias multiplied.
        params = jax.tree.map(lambda leaf: leaf, state.params)
        for index, factor in enumerate(scale[row], 1):
            norm = params[f"stage{index}"]["block1"]["bn2"]
            params[f"stage{index}"]["block1"]["bn2"] = {name: value * factor for name, value in norm.items()}
        np.testing.assert_allclose(got[row], apply(params, np.ones_like(scale))[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["devices", pytest.param("scan", marks=pytest.mark.slow), "accumulate"])
def test_the_same_images_skip_however_it_is_computed(x64, change):
    depth = StochasticDepth((0.2, 0.3, 0.4, 0.5, 0.6, 0.7) if change == "scan" else (0.3, 0.5, 0.7), seed=2)
    group = 4 if change == "accumulate" else None
    if change == "accumulate":
        # As many images per group in one pass, and the rows are drawn for the batch as a whole.
        scales = np.asarray(depth(jnp.int32(0), BATCH))
        order = np.arange(BATCH).reshape(4, 4).T.reshape(-1)
        want, _ = one_step(make(group=group), batch(order), stochastic_depth=lambda step, size: jnp.asarray(scales[order]))
        got, _ = one_step(make(), batch(), accumulate=4, stochastic_depth=depth)
    elif change == "devices":
        want, _ = one_step(make(), batch(), stochastic_depth=depth)
        got, _ = one_step(make(), batch(), devices=8, stochastic_depth=depth)
    else:
        model, optimizer, state = make(scan=True)
        got, _ = one_step((model, optimizer, state), batch(), stochastic_depth=depth)
        plain = model.clone(scan_blocks=False)
        start = helpers.state_of(
            helpers.random_like(resnet.variable_shapes(plain, (SIZE, SIZE, 3))), optimizer, [120, 110, 100], [60, 61, 62]
        )
        want, _ = one_step((plain, optimizer, start), batch(), stochastic_depth=depth)
        want = stack_blocks(want)
    assert_close(want.params, got.params)
    without, _ = one_step(make(group=group), batch())
    one, other = (np.asarray(state.params["head"]["dense"]["kernel"]) for state in (without, got))
    assert np.abs(one - other).max() > 1e-5, "the case tests nothing"
