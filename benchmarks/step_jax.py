"""Our side of step.py: compiles the step, then times as many steps as each line of its input says."""

import collections
import json
import pathlib
import sys
import time

import jax
import numpy as np

from resnet_jax import host, parallel
from resnet_jax.analysis.summary import summarize, total
from resnet_jax.config import BatchNormConfig, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from resnet_jax.evaluation.protocols import compile_eval_step
from resnet_jax.models import resnet
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import make_schedule
from resnet_jax.training.state import fresh_state
from resnet_jax.training.step import compile_train_step, make_step


def slowest(folder: str, count: int = 15) -> list[list]:
    """The operations that took most time in a profile: [name, milliseconds], those of a device if there is one."""
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    planes = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    spent = collections.Counter()
    for plane in planes:
        for line in plane.lines:
            if not plane.name.startswith("/device:") or line.name.startswith(("Stream", "XLA Ops")):
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e6
    return [[name, round(milliseconds, 2)] for name, milliseconds in spent.most_common(count)]


def main(job: dict) -> None:
    config = TrainConfig(batch_size=job["batch"], data=DataConfig(image_size=job["size"]))
    host.use_all_cores(config)  # as train.py does
    classes = 10 if job["network"].startswith("cifar") else 1000
    settings = ModelConfig(name=job["network"], stride_placement="3x3", max_pool="torch", dtype=job["dtype"])
    model = resnet.build(settings, BatchNormConfig(), classes)
    schedule = make_schedule(ScheduleConfig(), 0.01)
    optimizer = make_optimizer(OptimizerConfig(name="sgd"))
    mesh = parallel.make_mesh(None if jax.default_backend() == "cpu" else 1)
    pixels = {"mean": np.full((1, 1, 3), 120, np.float32), "std": np.full((1, 1, 3), 60, np.float32)}
    state = parallel.put_replicated(fresh_state(model, optimizer, (job["size"], job["size"], 3), pixels, 0), mesh)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (job["batch"], job["size"], job["size"], 3), np.uint8),
        "label": rng.integers(0, classes, job["batch"]).astype(np.int32),
    }
    if job["mode"] == "infer":
        batch["mask"] = np.ones(job["batch"], bool)
    batch = parallel.put_batch(batch, mesh, job["batch"])
    train_step, eval_step = (
        compile_train_step(make_step(model, optimizer, schedule, 0), mesh),
        compile_eval_step(model, 0, mesh),
    )

    def run(steps: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(steps):
            if job["mode"] == "train":
                state, result = parallel.one_at_a_time(train_step(state, batch), mesh)
            else:
                result = parallel.one_at_a_time(eval_step(state.params, state.batch_stats, state.pixels, batch), mesh)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    run(2)
    device = jax.devices()[0]
    multiply_adds = total(summarize(model, (job["size"], job["size"], 3))).multiply_adds
    flops = 2 * multiply_adds * (3 if job["mode"] == "train" else 1)
    ready = {"version": f"jax {jax.__version__}", "device": device.device_kind, "flops_per_image": flops}
    if job["profile"]:
        with jax.profiler.trace(job["profile"]):
            run(3)
        ready["slowest"] = slowest(job["profile"])
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        seconds = run(int(line))
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
        print(json.dumps({"seconds": seconds, "peak_memory_gib": round(peak, 2)}), flush=True)


if __name__ == "__main__":
    host.use_huge_pages()
    main(json.loads(sys.argv[1]))
