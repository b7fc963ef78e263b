"""Memory of the input pipeline over many batches: this process and its workers, read from the operating system.

    python benchmarks/input_memory.py --data=PACKED --batches=10000 --workers=1

PACKED is a folder that `resnet_jax.data.prepare` made, or a folder of JPEGs with --source=folder. It prints the memory at
regular batches and its slope over the second half, and can draw it (--picture).
"""

import json
import time

import matplotlib
import numpy as np
import psutil
from absl import app, flags

from resnet_jax import recipes
from resnet_jax.data import augment, pipeline, sources

matplotlib.use("Agg")
from matplotlib import pyplot

DATA = flags.DEFINE_string("data", None, "The data set's folder.", required=True)
SOURCE = flags.DEFINE_enum("source", "records", ["records", "folder"], "What is in it.")
BATCHES = flags.DEFINE_integer("batches", 10_000, "How many to load.", lower_bound=100)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images in each.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 1, "data.workers.", lower_bound=0)
PICTURE = flags.DEFINE_string("picture", None, "Draw the memory over the batches here (.png).")


def resident() -> tuple[float, float]:
    """MiB of this process and of its workers together; shared pages count in each."""
    me = psutil.Process()
    workers = [process.memory_info().rss for process in me.children(recursive=True)]
    return me.memory_info().rss / 2**20, sum(workers) / 2**20


def main(_: list[str]) -> None:
    config = recipes.paper_imagenet("resnet50")
    config.data.source, config.data.root, config.data.workers = SOURCE.value, DATA.value, WORKERS.value
    source = sources.open_source(config.data, "train", 0)
    rows = range(BATCH_SIZE.value)
    batches = pipeline.TrainBatches(source, augment.train_transform(config), len(rows), rows, 0, BATCHES.value)
    seen, began = [], time.monotonic()
    with pipeline.iterate(batches, 0, config.data) as iterator:
        for number, _ in enumerate(iterator, 1):
            if number % (BATCHES.value // 50) == 0:
                seen.append((number, *resident()))
                speed = number * len(rows) / (time.monotonic() - began)
                print(
                    "batch {}: {:.0f} MiB here, {:.0f} MiB in workers".format(*seen[-1]), f"{speed:.0f} images/s", flush=True
                )
    table = np.array(seen)
    half = table[len(table) // 2 :]
    slopes = [1000 * float(np.polyfit(half[:, 0], half[:, column], 1)[0]) for column in (1, 2)]
    names = ("here", "workers")
    result = {"batches": BATCHES.value, "batch_size": len(rows), "workers": WORKERS.value, "images": len(source)}
    result |= {
        f"mib_{name}": [round(float(table[k, i + 1])) for k in (0, len(table) // 2, -1)] for i, name in enumerate(names)
    }
    result["mib_per_1000_batches_in_second_half"] = dict(zip(names, (round(slope, 2) for slope in slopes), strict=True))
    print(json.dumps(result))
    if PICTURE.value:
        figure, axis = pyplot.subplots(figsize=(7, 4))
        axis.plot(table[:, 0], table[:, 1], label="main process")
        axis.plot(table[:, 0], table[:, 2], label=f"{WORKERS.value} worker processes")
        axis.set(xlabel=f"batches of {len(rows)} images", ylabel="resident memory, MiB", ylim=(0, None))
        axis.legend()
        figure.savefig(PICTURE.value, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    app.run(main)
