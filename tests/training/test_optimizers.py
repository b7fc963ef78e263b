"""SGD in both forms and the schedules against a loop in NumPy; doctests."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config import OptimizerConfig, ScheduleConfig
from resnet_jax.training import optimizers, schedules
from resnet_jax.weights import torchvision


@pytest.mark.parametrize(("name", "nesterov"), [("sgd_caffe", False), ("sgd", False), ("sgd", True)])
def test_against_the_formulas(x64, name, nesterov):
    schedule = schedules.step_schedule(ScheduleConfig(boundaries=(3, 5), factor=0.25), 0.5)
    config = OptimizerConfig(name=name, momentum=0.875, nesterov=nesterov, weight_decay=0.125)
    optimizer = optimizers.make_optimizer(config, schedule)
    rng = np.random.RandomState(0)
    start = {"conv": {"kernel": rng.standard_normal(4)}, "bn": {"scale": rng.standard_normal(3)}}
    gradients = [jax.tree.map(lambda w: rng.standard_normal(w.shape), start) for _ in range(8)]
    params, state = jax.tree.map(jnp.asarray, start), optimizer.init(start)
    for g in gradients:
        updates, state = optimizer.update(g, state, params)
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


def test_the_two_forms_differ_after_a_drop_only():
    def run(name, boundaries):
        schedule = schedules.step_schedule(ScheduleConfig(boundaries=boundaries), 0.5)
        optimizer = optimizers.make_optimizer(OptimizerConfig(name=name, weight_decay=0.0), schedule)
        params = {"kernel": jnp.ones(1)}
        state = optimizer.init(params)
        for _ in range(6):
            updates, state = optimizer.update({"kernel": jnp.ones(1)}, state, params)
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
    config = ScheduleConfig(boundaries=(32_000, 48_000), warmup_steps=400, warmup_learning_rate=0.01)
    schedule = jax.jit(schedules.step_schedule(config, 0.1))
    steps = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    np.testing.assert_allclose(
        [schedule(step) for step in steps], [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6
    )
    assert schedule(0).dtype == jnp.float32
    constant = schedules.step_schedule(ScheduleConfig(boundaries=()), 0.3)
    assert float(constant(jnp.int32(10**6))) == pytest.approx(0.3)


@pytest.mark.parametrize("module", [schedules, torchvision])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
