"""Our side of step.py: compiles the step, then times as many steps as each line of its input says."""

import json
import sys
import time

import jax
import numpy as np

from resnet_jax import host, parallel
from resnet_jax.config import BatchNormConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from resnet_jax.evaluation.protocols import compile_eval_step
from resnet_jax.models import resnet
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import step_schedule
from resnet_jax.training.state import fresh_state
from resnet_jax.training.step import compile_train_step


def main(job: dict) -> None:
    host.use_all_cores(TrainConfig(batch_size=job["batch"]))  # as train.py does
    classes = 10 if job["network"].startswith("cifar") else 1000
    settings = ModelConfig(name=job["network"], stride_placement="3x3", max_pool="torch", dtype=job["dtype"])
    model = resnet.build(settings, BatchNormConfig(), classes)
    schedule = step_schedule(ScheduleConfig(), 0.01)
    optimizer = make_optimizer(OptimizerConfig(name="sgd"), schedule)
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
    train_step, eval_step = compile_train_step(model, optimizer, schedule, 0, mesh), compile_eval_step(model, 0, mesh)

    def run(steps: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(steps):
            if job["mode"] == "train":
                state, result = train_step(state, batch)
            else:
                result = eval_step(state.params, state.batch_stats, state.pixels, batch)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    run(2)
    device = jax.devices()[0]
    print(json.dumps({"version": f"jax {jax.__version__}", "device": device.device_kind}), flush=True)
    for line in sys.stdin:
        seconds = run(int(line))
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
        print(json.dumps({"seconds": seconds, "peak_memory_gib": round(peak, 2)}), flush=True)


if __name__ == "__main__":
    host.use_huge_pages()
    main(json.loads(sys.argv[1]))
