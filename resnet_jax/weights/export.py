"""Writes a run's weights for other libraries: python -m resnet_jax.weights.export --workdir=RUN --output=FILE.safetensors"""

import pathlib

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; default: the latest.", lower_bound=0)
BEST = flags.DEFINE_bool("best", False, "Export the kept checkpoint with the best top-1 accuracy instead.")
AVERAGE = flags.DEFINE_bool(
    "average", None, "Export the moving average of the weights (average.decay); default: if average.evaluate=instead."
)
OUTPUT = flags.DEFINE_string("output", None, "File to write, .safetensors.")


def main(config: TrainConfig) -> None:
    """Exports parameters and running statistics of a checkpoint, in torchvision's names."""
    from resnet_jax.evaluation.run import restore_checkpoint
    from resnet_jax.weights import formats

    if not OUTPUT.value:
        raise UserError("--output=FILE.safetensors is missing")
    step, _, state = restore_checkpoint(config, WORKDIR.value, -1 if BEST.value else STEP.value, AVERAGE.value)
    path = pathlib.Path(OUTPUT.value)
    try:
        formats.export({"params": state.params, "batch_stats": state.batch_stats}, path)
    except OSError as error:
        raise UserError(f"--output={path}: cannot write there ({error})") from error
    print(f"{path}: weights of {WORKDIR.value}, step {step}")


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_workdir, needs_data=False)
