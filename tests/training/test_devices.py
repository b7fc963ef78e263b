"""One device and eight compute the same step; it compiles once and moves nothing by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel, validation
from resnet_jax.config import BatchNormConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from resnet_jax.errors import UserError
from resnet_jax.models import resnet
from resnet_jax.training import step as step_lib
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import make_schedule
from tests import helpers

BATCH = 16


def make(group, dtype, devices):
    model = resnet.build(ModelConfig(name="cifar_resnet8", shortcut="B"), BatchNormConfig(group_size=group), 10).clone(
        dtype=dtype
    )
    schedule = make_schedule(ScheduleConfig(boundaries=()), 0.125)
    optimizer = make_optimizer(OptimizerConfig())
    mesh = parallel.make_mesh(devices)
    step_fn = step_lib.compile_train_step(step_lib.make_step(model, optimizer, schedule, 2), mesh)
    variables = helpers.random_like(resnet.variable_shapes(model, (16, 16, 3)), dtype)
    state = helpers.state_of(variables, optimizer, [120, 110, 100], [60, 61, 62], dtype)
    return step_fn, parallel.put_replicated(state, mesh), mesh


def batch(seed=0):
    rng = np.random.RandomState(seed)
    return {
        "image": rng.randint(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8),
        "label": rng.randint(0, 10, BATCH).astype(np.int32),
        "window": rng.randint(0, 2, (BATCH, 3)).astype(np.int32),
    }


def one_step(group, devices):
    step_fn, state, mesh = make(group, np.float64, devices)
    return step_fn(state, parallel.put_batch(batch(), mesh, BATCH))


# With eight devices of two images: groups within a device, one that spans two devices, and the whole batch.
@pytest.mark.parametrize("group", [None, 1, pytest.param(2, marks=pytest.mark.slow), 4, 16])
def test_eight_devices_equal_one_in_float64(x64, group):
    (one, one_metrics), (eight, eight_metrics) = one_step(group, 1), one_step(group, 8)
    one, eight = helpers.flat(one), helpers.flat(eight)
    assert any("trace" in name for name in one)  # the velocity after one step: the gradients, times the rate
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=1e-10 * max(1, np.abs(value).max()), err_msg=name)
    for name, value in one_metrics.items():
        np.testing.assert_allclose(eight_metrics[name], value, rtol=1e-10, err_msg=name)


def test_the_group_size_matters(x64):
    losses = {group: float(one_step(group, 1)[1]["loss"]) for group in (None, 2, 4, 16)}
    assert losses[None] == pytest.approx(losses[16], rel=1e-12)
    assert abs(losses[2] - losses[None]) > 1e-3
    assert abs(losses[4] - losses[2]) > 1e-3


@pytest.mark.parametrize("group", [2, 4, None])
def test_no_group_gathers_the_batch(group):
    step_fn, state, mesh = make(group, np.float32, 8)
    text = step_fn.lower(state, parallel.put_batch(batch(), mesh, BATCH)).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text


def test_uneven_batches_and_groups_are_refused():
    def check(devices, **fields):
        validation.check_devices(helpers.validated(helpers.digits_config(**fields)), devices)

    with pytest.raises(UserError, match="batch_size=20 cannot be shared by 8 devices: choose a multiple of 8"):
        check(8, batch_size=20)
    with pytest.raises(UserError, match="group_size=32 neither divides nor is a multiple of the 12 images"):
        check(8, batch_size=96, batch_norm__group_size=32)
    check(8, batch_size=96, batch_norm__group_size=24)
    check(8, batch_size=96, batch_norm__group_size=6)
    with pytest.raises(UserError, match="devices=9: this machine has 8"):
        parallel.make_mesh(9)


def test_step_compiles_once_and_transfers_nothing_implicitly(monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(step_lib, "train_step", chex.assert_max_traces(step_lib.train_step, n=1))
    step_fn, state, mesh = make(None, np.float32, 8)
    with jax.transfer_guard("disallow"):
        for seed in range(3):
            state, _ = step_fn(state, parallel.put_batch(batch(seed), mesh, BATCH))
    assert int(state.step) == 3


def test_transfer_guard_would_notice():
    step_fn, state, _ = make(None, np.float32, 1)
    with pytest.raises(Exception, match="Disallowed host-to-device"), jax.transfer_guard("disallow"):
        step_fn(state, batch())


def test_state_is_donated():
    step_fn, state, mesh = make(None, np.float32, 1)
    step_fn(state, parallel.put_batch(batch(), mesh, BATCH))
    assert state.params["stem"]["conv"]["kernel"].is_deleted()


def test_own_code_promotes_no_dtypes(strict_dtypes):
    step_fn, state, _ = make(2, np.float32, 1)
    jax.eval_shape(step_fn, state, jax.tree.map(jnp.asarray, batch()))


def test_rows_of_the_devices_cover_the_batch():
    assert parallel.local_rows(parallel.make_mesh(8), 16) == list(range(16))
