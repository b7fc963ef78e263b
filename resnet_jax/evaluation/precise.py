"""Scores a run with precise batch norm: the statistics of many training images in place of the running averages.

python -m resnet_jax.evaluation.precise --workdir=RUN --images=10000 [--step=N | --best] [--output=FILE.safetensors]

`evaluation.statistics` says how they come about. The score is shown beside the plain one; the run stays as it is, and
--output=FILE.safetensors writes the weights with the new statistics elsewhere, and both scores beside it (FILE.json).
"""

import json
import pathlib

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
IMAGES = flags.DEFINE_integer("images", 10_000, "Training images, rounded down to whole batches.", lower_bound=1)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to take; default: the latest.", lower_bound=0)
BEST = flags.DEFINE_bool("best", False, "Take the kept checkpoint with the best top-1 accuracy instead.")
OUTPUT = flags.DEFINE_string("output", None, "File to write the new weights to, .safetensors.")


def main(config: TrainConfig) -> None:
    """Scores a checkpoint with both kinds of statistics."""
    from resnet_jax import parallel
    from resnet_jax.evaluation import run as runs
    from resnet_jax.evaluation import statistics
    from resnet_jax.training.experiment import open_data
    from resnet_jax.weights import formats

    output = pathlib.Path(OUTPUT.value) if OUTPUT.value else None
    if output is not None and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: must end in .safetensors")
    used = statistics.whole_batches(config, IMAGES.value)
    step, run, state = runs.restore_checkpoint(config, WORKDIR.value, -1 if BEST.value else STEP.value)
    stats = statistics.precise_statistics(run, state, open_data(config, "train"), used)
    after = state.replace(batch_stats=stats)
    scores = {"plain": runs.score(run, state), "precise": runs.score(run, after)}
    parallel.say(f"{WORKDIR.value}, step {step}, {scores['plain'].count} images scored")
    parallel.say(f"running statistics:                {scores['plain']}")
    parallel.say(f"of {used} training images:{' ' * max(0, 10 - len(str(used)))} {scores['precise']}")
    if output is None:
        return
    facts = {"workdir": WORKDIR.value, "step": step, "training_images": used}
    try:
        formats.export({"params": after.params, "batch_stats": after.batch_stats}, output)
        scores = {name: score.as_metrics() for name, score in scores.items()}
        output.with_suffix(".json").write_text(json.dumps(facts | scores, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--output={output}: cannot write there ({error})") from error
    parallel.say(f"{output}: the weights with the new statistics; {output.with_suffix('.json')}: the scores")


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_workdir)
