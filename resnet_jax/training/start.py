"""How a run starts: from the last checkpoint in its workdir, else from `init`, else fresh; and what it says of itself."""

import jax
from etils import epath

from resnet_jax import config as config_lib
from resnet_jax import parallel, validation
from resnet_jax.config import TrainConfig
from resnet_jax.data import normalize
from resnet_jax.data.sources import Source
from resnet_jax.errors import UserError
from resnet_jax.models import formulation
from resnet_jax.models.resnet import count_parameters, variable_shapes
from resnet_jax.training.checkpoints import Checkpoints, Progress
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState, fresh_state
from resnet_jax.training.workdir import write_whole
from resnet_jax.weights import formats


def first_state(run: Experiment, source: Source) -> TrainState:
    """The state before the first step, on the host: the weights named by `init`, else fresh ones."""
    config = run.config
    pixels = normalize.statistics(config.data, source)
    state = fresh_state(run.model, run.optimizer, run.image_shape, pixels, config.seed)
    if config.init is None:
        return run.complete(state)
    loaded = formats.load(config.init, variable_shapes(run.model, run.image_shape), config.init_head)
    return run.complete(state.replace(params=state.params | loaded["params"], batch_stats=loaded["batch_stats"]))


def start_state(run: Experiment, source: Source, checkpoints: Checkpoints, workdir: epath.Path) -> tuple:
    """The state to start from, and the progress: the last checkpoint in the workdir, else `first_state`.

    Raises:
      UserError: the workdir holds a run of another config.
    """
    steps, stored = checkpoints.steps(), workdir / "config.json"
    if steps:
        if steps[-1] > run.config.steps:
            raise UserError(
                f"{workdir} is at step {steps[-1]} already, beyond steps={run.config.steps}; set steps higher, or "
                "use another --workdir"
            )
        if stored.exists() and (found := validation.differences(config_lib.load(stored), run.config)):
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(found)}); "
                "use another --workdir, or give the config it was started with"
            )
        state, progress = checkpoints.restore_last(run.abstract_state(), parallel.say)
    else:
        state, progress = parallel.put_replicated(first_state(run, source), run.mesh), Progress()
    if parallel.is_main():
        write_whole(stored, config_lib.to_json(run.config))
    return state, progress


def describe(run: Experiment, train_source: Source, test_source: Source, state: TrainState) -> str:
    """A few lines on what runs where, and how."""
    config, device = run.config, run.mesh.devices.flat[0]
    hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    millions = count_parameters({"params": state.params}) / 1e6
    return (
        f"{config.model.name}, shortcut {run.model.shortcut or 'none'}, {millions:.2f} M parameters, {config.model.dtype}; "
        f"{len(train_source)} training and {len(test_source)} test images, {len(train_source.classes)} classes\n"
        f"{run.mesh.size} x {device.device_kind} ({device.platform}){hosts}, {config.batch_size} images per step, "
        f"batch norm over {config.batch_norm.group_size or 'all'} of them{_at_rate(config)}\n{formulation.describe()}; "
        f"blocks {'in a loop (scan_blocks)' if run.model.scan_blocks else 'unrolled'}"
        + (f", stages {run.model.remat} computed again in the backward pass" if run.model.remat else "")
    )


def _at_rate(config: TrainConfig) -> str:
    """What `learning_rate_per` and `accumulate` make of a config, which nobody should have to guess."""
    optimizer, said = config.optimizer, ""
    if config.accumulate > 1:
        said += f"; {config.accumulate} micro-batches of {config.batch_size // config.accumulate}, each with its batch norm"
    if optimizer.learning_rate_per is not None:
        rate = optimizer.learning_rate * config.batch_size / optimizer.learning_rate_per
        said += f"; learning rate {optimizer.learning_rate:g} x {config.batch_size}/{optimizer.learning_rate_per} = {rate:g}"
    return said
