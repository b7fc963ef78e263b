"""Every optimizer and every schedule against a loop in NumPy; doctests."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config import OptimizerConfig, ScheduleConfig
from resnet_jax.models import stochastic_depth
from resnet_jax.models.blocks import stack_blocks, unstack_blocks
from resnet_jax.training import losses, optimizers, schedules
from resnet_jax.weights import torchvision
from tests import helpers


@pytest.mark.parametrize(("name", "nesterov"), [("sgd_caffe", False), ("sgd", False), ("sgd", True)])
def test_against_the_formulas(x64, name, nesterov):
    schedule = schedules.make_schedule(ScheduleConfig(boundaries=(3, 5), factor=0.25), 0.5)
    config = OptimizerConfig(name=name, momentum=0.875, nesterov=nesterov, weight_decay=0.125)
    optimizer = optimizers.make_optimizer(config)
    rng = np.random.RandomState(0)
    start = {"conv": {"kernel": rng.standard_normal(4)}, "bn": {"scale": rng.standard_normal(3)}}
    gradients = [jax.tree.map(lambda w: rng.standard_normal(w.shape), start) for _ in range(8)]
    params, state = jax.tree.map(jnp.asarray, start), optimizer.init(start)
    for step, g in enumerate(gradients):
        updates, state = optimizer.update(g, state, params, learning_rate=schedule(step))
        params = optax.apply_updates(params, updates)
    for group, leaf, decay in (("conv", "kernel", 0.125), ("bn", "scale", 0.0)):
        w, v = start[group][leaf].copy(), 0.0
        for step, g in enumerate(gradients):
            rate = 0.5 * 0.25 ** ((step >= 3) + (step >= 5))
            g = g[group][leaf] + decay * w
            if name == "sgd_caffe":
                v = 0.875 * v + rate * g
                w = w - v
            else:
                v = 0.875 * v + g
                w = w - rate * (g + 0.875 * v if nesterov else v)
        np.testing.assert_allclose(params[group][leaf], w, rtol=1e-12)


def layers(rng):
    """Parameters of a stage with three blocks and a head."""
    block = lambda: {"conv1": {"kernel": rng.standard_normal((2, 3))}, "bn1": {"scale": rng.standard_normal(3)}}  # noqa: E731
    stage = {f"block{index}": block() for index in (1, 2, 3)}
    return {"stage1": stage, "head": {"dense": {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}}}


def follow(config, start, gradients, rate):
    """The parameters after some updates."""
    optimizer = optimizers.make_optimizer(config)
    params, state = jax.tree.map(jnp.asarray, start), optimizer.init(start)
    for g in gradients:
        updates, state = jax.jit(optimizer.update)(g, state, params, learning_rate=jnp.float32(rate))
        params = optax.apply_updates(params, updates)
    return params


def by_hand(config, start, gradients, rate):
    """The same for one layer, in NumPy."""
    w, v, m, s = start.copy(), 0.0, 0.0, 0.0
    decays = config.decay_mask == "all" or w.ndim > 1
    d = config.weight_decay * decays
    for t, g in enumerate(gradients, 1):
        if config.name == "lars":
            u = g + d * w
            if decays:
                u = u * config.trust_coefficient * np.linalg.norm(w) / np.linalg.norm(u)
            v = config.momentum * v + rate * u
            w = w - (rate * u + config.momentum * v if config.nesterov else v)
            continue
        m = config.beta1 * m + (1 - config.beta1) * g
        s = config.beta2 * s + (1 - config.beta2) * g**2
        u = m / (1 - config.beta1**t) / (np.sqrt(s / (1 - config.beta2**t)) + config.epsilon) + d * w
        if config.name == "lamb" and decays:
            u = u * np.linalg.norm(w) / np.linalg.norm(u)
        w = w - rate * u
    return w


MODERN = [
    OptimizerConfig(name="lars", trust_coefficient=0.02, momentum=0.8, weight_decay=0.125),
    OptimizerConfig(name="lars", nesterov=True, decay_mask="all", weight_decay=0.125),
    OptimizerConfig(name="lamb", beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.125),
    OptimizerConfig(name="lamb", decay_mask="all", weight_decay=0.25),
    OptimizerConfig(name="adamw", beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.125),
]


@pytest.mark.parametrize("config", MODERN, ids=lambda config: f"{config.name}-{config.decay_mask}")
def test_modern_optimizers_against_the_formulas(x64, config):
    rng = np.random.RandomState(1)
    start, rate = layers(rng), 0.25
    gradients = [jax.tree.map(lambda w: rng.standard_normal(w.shape), start) for _ in range(5)]
    ended = helpers.flat(follow(config, start, gradients, rate))
    for name, w in helpers.flat(start).items():
        want = by_hand(config, w, [helpers.flat(g)[name] for g in gradients], rate)
        np.testing.assert_allclose(ended[name], want, rtol=1e-12, err_msg=name)
    # With the blocks of the stage in one array, every layer still has a trust ratio of its own.
    stacked = follow(config, stack_blocks(start), [stack_blocks(g) for g in gradients], rate)
    assert "blocks" in stacked["stage1"]
    for name, w in helpers.flat(unstack_blocks(stacked)).items():
        np.testing.assert_allclose(w, ended[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_by_the_global_norm(x64, limit):
    rng = np.random.RandomState(2)
    start = layers(rng)
    gradient = jax.tree.map(lambda w: rng.standard_normal(w.shape), start)
    ended = follow(OptimizerConfig(name="sgd", clip_norm=limit, weight_decay=0.125), start, [gradient], 0.5)
    norm = np.sqrt(sum((g**2).sum() for g in helpers.flat(gradient).values()))
    for name, w in helpers.flat(start).items():
        decay = 0.125 * w * (w.ndim > 1)  # is added to the clipped gradient
        want = w - 0.5 * (helpers.flat(gradient)[name] * min(1, limit / norm) + decay)
        np.testing.assert_allclose(helpers.flat(ended)[name], want, rtol=1e-12, err_msg=name)


def test_the_two_forms_differ_after_a_drop_only():
    def run(name, boundaries):
        schedule = schedules.make_schedule(ScheduleConfig(boundaries=boundaries), 0.5)
        optimizer = optimizers.make_optimizer(OptimizerConfig(name=name, weight_decay=0.0))
        params = {"kernel": jnp.ones(1)}
        state = optimizer.init(params)
        for step in range(6):
            updates, state = optimizer.update({"kernel": jnp.ones(1)}, state, params, learning_rate=schedule(step))
            params = optax.apply_updates(params, updates)
        return float(params["kernel"][0])

    assert run("sgd", ()) == pytest.approx(run("sgd_caffe", ()), rel=1e-6)
    assert abs(run("sgd", (3,)) - run("sgd_caffe", (3,))) > 0.1


def test_decay_masks():
    params = {"head": {"kernel": 0, "bias": 0}, "bn1": {"scale": 0, "bias": 0}}
    assert optimizers.decay_mask(params, "kernels") == {
        "head": {"kernel": True, "bias": False},
        "bn1": {"scale": False, "bias": False},
    }
    assert all(jax.tree.leaves(optimizers.decay_mask(params, "all")))


def test_step_schedule():
    config = ScheduleConfig(boundaries=(32_000, 48_000), warmup="constant", warmup_steps=400)
    schedule = jax.jit(schedules.make_schedule(config, 0.1))
    steps = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    np.testing.assert_allclose(
        [schedule(step) for step in steps], [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6
    )
    assert schedule(0).dtype == jnp.float32
    constant = schedules.make_schedule(ScheduleConfig(boundaries=()), 0.3)
    assert float(constant(jnp.int32(10**6))) == pytest.approx(0.3)


@pytest.mark.parametrize("warmup", ["none", "constant", "linear"])
@pytest.mark.parametrize("name", ["constant", "cosine", "polynomial", "linear"])
def test_schedules_against_numpy(name, warmup):
    steps, first, peak, last, w = 50, 0.05, 0.4, 0.01, 0 if warmup == "none" else 7
    config = ScheduleConfig(
        name=name, final_learning_rate=last, power=3.0, warmup=warmup, warmup_steps=w, warmup_learning_rate=first
    )
    schedule = jax.jit(schedules.make_schedule(config, peak, steps))
    for step in range(steps + 3):
        way = min(max(step - w, 0) / (steps - w), 1)
        left = {"constant": 1, "cosine": (1 + np.cos(np.pi * way)) / 2, "polynomial": (1 - way) ** 3, "linear": 1 - way}
        want = last + (peak - last) * left[name]
        if step < w:
            want = first if warmup == "constant" else first + (peak - first) * step / w
        np.testing.assert_allclose(schedule(step), want, rtol=2e-5, atol=1e-8, err_msg=str(step))


def run_schedule(config, rate, losses, errors):
    """The rate of every step, given the loss and error of each."""
    schedule = schedules.make_schedule(config, rate)
    state, rates = schedule.init(), []
    observe, rate_of = jax.jit(schedule.observe), jax.jit(schedule)
    for step, (loss, error) in enumerate(zip(losses, errors, strict=True)):
        rates.append(float(rate_of(step, state)))
        state = observe(state, jnp.float32(loss), jnp.float32(error))
    return rates


def test_warmup_until_the_error_is_low():
    errors = np.array([0.95, 0.7, 0.7, 0.9, 0.85, 0.75, 0.7, 0.99, 0.99, 0.99, 0.99], np.float32)
    config = ScheduleConfig(boundaries=(9,), warmup="error", warmup_error=0.8, warmup_error_window=4)
    want, over = [], False
    for step in range(len(errors)):
        # The rate of an update knows the errors of the updates before it.
        over = over or (step >= 4 and np.mean(errors[step - 4 : step]) < 0.8)
        want.append((0.1 if step < 9 else 0.01) if over else 0.01)
    assert want[4:9] == [0.01, 0.1, 0.1, 0.1, 0.1], "the case tests nothing"
    np.testing.assert_allclose(run_schedule(config, 0.1, errors * 0, errors), want, rtol=1e-6)
    # Half as many errors in the window do not end it, however low.
    early = ScheduleConfig(boundaries=(), warmup="error", warmup_error_window=100)
    assert run_schedule(early, 0.1, [1.0] * 50, [0.0] * 50) == [pytest.approx(0.01)] * 50


@pytest.mark.parametrize("metric", ["loss", "error"])
def test_plateau(metric):
    rng = np.random.RandomState(3)
    values = 1 / (1 + np.arange(60) / 5) + 0.02 * rng.rand(60)
    values[30:] = 0.16 + 0.01 * rng.rand(30)
    config = ScheduleConfig(
        name="plateau", factor=0.25, plateau_metric=metric, plateau_window=3, plateau_patience=2, final_learning_rate=0.02
    )
    want, best, bad, rate = [], np.inf, 0, 0.5
    for step in range(60):
        want.append(rate)
        if step % 3 == 2:
            mean = values[step - 2 : step + 1].mean()
            best, bad = (mean, 0) if mean < 0.99 * best else (best, bad + 1)
            if bad == 2:
                rate, bad = max(rate * 0.25, 0.02), 0
    assert len(set(want)) == 4, "the case tests nothing"
    other = np.linspace(1, 0, 60)
    given = (values, other) if metric == "loss" else (other, values)
    np.testing.assert_allclose(run_schedule(config, 0.5, *given), want, rtol=1e-6)


def test_rates_are_scaled_together():
    config = ScheduleConfig(name="linear", warmup="linear", warmup_steps=10, final_learning_rate=0.1)
    one, four = schedules.make_schedule(config, 0.5, 30), schedules.make_schedule(config, 0.5, 30, scale=4)
    for step in (0, 3, 10, 20, 30):
        assert float(four(step)) == pytest.approx(4 * float(one(step)), rel=1e-6)


@pytest.mark.parametrize("module", [losses, schedules, stochastic_depth, torchvision])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
