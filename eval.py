"""Evaluates a checkpoint of a run:  python eval.py --workdir=runs/digits [--step=N | --best] [--average]
or published weights:            python eval.py --config=FILE --config.init=torchvision:resnet50.pth

The config stored in the workdir is used; its fields are flags here too: --config.data.root=PATH.
"""

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; default: the latest.", lower_bound=0)
BEST = flags.DEFINE_bool("best", False, "Evaluate the kept checkpoint with the best top-1 accuracy instead.")
AVERAGE = flags.DEFINE_bool(
    "average", None, "Evaluate the moving average of the weights (average.decay); default: if average.evaluate=instead."
)


def main(config: TrainConfig) -> None:
    from resnet_jax import parallel
    from resnet_jax.evaluation import run  # after the flags that JAX reads when it starts are set

    if WORKDIR.value:
        step, scores = run.evaluate_checkpoint(config, WORKDIR.value, -1 if BEST.value else STEP.value, AVERAGE.value)
        what = f"{WORKDIR.value}, step {step}"
    elif config.init:
        scores, what = run.evaluate_init(config), config.init
    else:
        raise UserError("nothing to evaluate: give --workdir=FOLDER of a run, or --config.init=FORMAT:PATH")
    parallel.say(f"{what}: {scores}; {scores.count} images scored")


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_workdir_or_file)
