"""What a run would need, without running it: opens the data, builds and compiles the training step, writes nothing."""

import time

from resnet_jax import parallel, validation
from resnet_jax.config import TrainConfig
from resnet_jax.training import experiment as experiment_lib
from resnet_jax.training.compiled import compile_step
from resnet_jax.training.cost import StepCost, step_cost
from resnet_jax.training.feed import Resident
from resnet_jax.training.start import describe


def dry_run(config: TrainConfig) -> StepCost:
    """Prints what would run where, the memory and the arithmetic of a step, and how long compilation took.

    Raises:
      UserError: bad data or config.
    """
    train_source = experiment_lib.open_data(config, "train")
    test_source = experiment_lib.open_data(config, "val")
    run = experiment_lib.build(config, len(train_source.classes), train_source.channels, len(train_source))
    validation.check_devices(run.config, run.mesh.size)
    parallel.say(describe(run, train_source, test_source, run.abstract_state()))
    began = time.monotonic()
    if run.config.data.placement == "device":
        compiled = Resident(run, train_source).compile(run.abstract_model_state())
    else:
        compiled = compile_step(run)
    cost = step_cost(run, compiled)
    parallel.say(f"{cost}\ncompiled in {time.monotonic() - began:.0f} s; a dry run: nothing was trained or written")
    return cost
