"""Durations in steps, epochs and examples."""

import pytest

from resnet_jax import config as config_lib
from resnet_jax import durations, validation
from resnet_jax.errors import UserError
from tests import helpers


def config(**fields):
    values = {
        "steps": 90,
        "batch_size": 256,
        "schedule__boundaries": (30, 60),
        "schedule__warmup": "linear",
        "schedule__warmup_steps": 0.5,
        "schedule__plateau_window": 1,
        "evaluation__every": 1,
        "checkpoint__every": 0,
    } | fields
    return helpers.validated(helpers.digits_config(**values))


def test_epochs_of_imagenet():
    given = config(unit="epochs")
    found = config_lib.resolved(given, 1000, 1_281_167)
    assert found.unit == "steps"
    assert durations.values(found) == {
        "steps": (450_410,),  # 90 * 1281167 / 256 = 450410.3
        "schedule.boundaries": (150_137, 300_274),  # 150136.8, 300273.5
        "schedule.warmup_steps": (2502,),
        "evaluation.every": (5005,),
        "checkpoint.every": (0,),
    }
    assert config_lib.resolved(config(unit="epochs", data__repeats=3), 1000, 1_281_167).steps == 1_351_231
    # What is stored is in steps, stays as it is, and goes on under the flags that it was made with.
    assert config_lib.resolved(found, 1000, 1_281_167) == found
    assert validation.differences(found, config_lib.resolved(given, 1000, 1_281_167)) == []
    # Without the training set there is nothing to count with.
    assert config_lib.resolved(given, 1000).unit == "epochs"


def test_examples():
    found = config(unit="examples", steps=25_600, schedule__warmup_steps=100, batch_size=128, schedule__name="cosine")
    found = config_lib.resolved(found, 10)
    assert (found.steps, found.schedule.warmup_steps, found.evaluation.every) == (200, 1, 1)


def test_steps_are_whole_numbers_afterwards():
    found = config_lib.resolved(config(schedule__warmup_steps=7.0), 10)
    assert type(found.schedule.warmup_steps) is int
    assert all(type(value) is int for value in found.schedule.boundaries)


def test_durations_that_make_no_sense():
    with pytest.raises(UserError, match=r"schedule\.boundaries=\(30, 60\), in examples: the steps \(1, 1\); must be differ"):
        config_lib.resolved(config(unit="examples", batch_size=4096), 10)
    with pytest.raises(
        UserError, match=r"steps=\(2000000000,\), in epochs: 4000000000 steps; must be .* at most 2147483647"
    ):
        config_lib.resolved(config(unit="epochs", steps=2_000_000_000, batch_size=500), 10, 1000)
    with pytest.raises(
        UserError, match=r"checkpoint\.every=5000 epochs, in a run of 90: it is counted in unit='epochs' too"
    ):
        config(unit="epochs", checkpoint__every=5000)
