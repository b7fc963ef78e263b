"""One run, as a process of its own: trains it as train.py does, or goes on, and measures it once it has ended.

python -m resnet_jax.reproduce.child --config=FILE --workdir=FOLDER [--config.FIELD=VALUE ...]

A finished run is only measured. What is measured is written to result.json in the workdir, last of all and at once.
"""

import datetime
import json
import os
import pathlib
import signal
import threading
import time

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
PRECISE_IMAGES = flags.DEFINE_integer("precise_images", 10_000, "Training images for precise batch norm; 0: without.")
RESPONSES = flags.DEFINE_bool("responses", False, "Measure the layer responses too.")

PATIENCE = 120  # seconds: a run whose starter was killed saves before it ends


def stop_with_parent() -> None:
    """Has this process stopped as by SIGTERM, which saves, when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_workdir(workdir: pathlib.Path) -> None:
    """Returns when no other run holds the folder.

    Raises:
      UserError: it is still held after PATIENCE seconds, or cannot be written.
    """
    from resnet_jax.training.experiment import own_workdir

    for patience in range(PATIENCE, -1, -1):
        try:
            with own_workdir(workdir):
                return
        except UserError as error:
            if not patience or "another run" not in str(error):
                raise
            time.sleep(1)


def main(config: TrainConfig) -> None:
    """Trains and measures."""
    from resnet_jax.reproduce import measure
    from resnet_jax.training.loop import train

    stop_with_parent()
    workdir = pathlib.Path(WORKDIR.value)
    wait_for_workdir(workdir)
    trained = not measure.is_finished(config, workdir)
    if trained:
        train(config, workdir)
    print("measuring: training error, precise batch norm" + (", layer responses" if RESPONSES.value else ""), flush=True)
    ended = (workdir / "checkpoints" / str(config.steps)).stat().st_mtime
    result = measure.measure(config, workdir, PRECISE_IMAGES.value, RESPONSES.value)
    result["commit"] = measure.commit() if trained else f"measured by {measure.commit()}"
    result["date"] = datetime.date.fromtimestamp(ended).isoformat()
    temporary = workdir / f"{measure.RESULT}.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(workdir / measure.RESULT)


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file)
