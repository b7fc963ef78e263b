"""One run, as a process of its own: trains it as train.py does, or goes on, and measures it once it has ended.

python -m resnet_jax.reproduce.child --config=FILE --workdir=FOLDER [--config.FIELD=VALUE ...]

A finished run is only measured. What is measured is written to result.json in the workdir, last of all and at once.
"""

import datetime
import json
import pathlib

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
PRECISE_IMAGES = flags.DEFINE_integer("precise_images", 10_000, "Training images for precise batch norm; 0: without.")
RESPONSES = flags.DEFINE_bool("responses", False, "Measure the layer responses too.")


def main(config: TrainConfig) -> None:
    """Trains and measures."""
    from resnet_jax.reproduce import measure, runner
    from resnet_jax.training.checkpoints import DamagedCheckpoint
    from resnet_jax.training.loop import train

    runner.stop_with_parent()
    workdir = pathlib.Path(WORKDIR.value)
    runner.wait_for_workdir(workdir)
    trained = not measure.is_finished(config, workdir)
    if trained:
        train(config, workdir)
    print("measuring: training error, precise batch norm" + (", layer responses" if RESPONSES.value else ""), flush=True)
    ended = (workdir / "checkpoints" / str(config.steps)).stat().st_mtime
    try:
        result = measure.measure(config, workdir, PRECISE_IMAGES.value, RESPONSES.value)
    except DamagedCheckpoint:  # training sets it aside and makes it again
        train(config, workdir)
        result = measure.measure(config, workdir, PRECISE_IMAGES.value, RESPONSES.value)
    result["commit"] = measure.commit() if trained else f"measured by {measure.commit()}"
    result["date"] = datetime.date.fromtimestamp(ended).isoformat()
    temporary = workdir / f"{measure.RESULT}.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(workdir / measure.RESULT)


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file)
