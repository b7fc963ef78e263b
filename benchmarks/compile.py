"""Compile time and memory of a training step, unrolled or with the blocks in a loop, with or without remat.

    python benchmarks/compile.py --network=cifar_resnet1202 --batch=128 --scan
    python benchmarks/compile.py --network=resnet50 --batch=64 --scan --remat=1,2

One configuration a process, so that nothing is compiled already. Memory is what XLA plans for temporaries on one device.
"""

import json
import os
import platform
import time

import jax
from absl import app, flags

from resnet_jax import parallel
from resnet_jax.config import BatchNormConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from resnet_jax.models import resnet
from resnet_jax.models.blocks import stack_blocks
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import make_schedule
from resnet_jax.training.state import abstract_state
from resnet_jax.training.step import compile_train_step, make_step

NETWORK = flags.DEFINE_string("network", "cifar_resnet1202", "Network.")
BATCH = flags.DEFINE_integer("batch", 128, "Images per step.")
SCAN = flags.DEFINE_bool("scan", False, "Blocks in a loop.")
REMAT = flags.DEFINE_list("remat", [], "Stages whose blocks are computed again in the backward pass.")
DTYPE = flags.DEFINE_string("dtype", "float32", "float32 or bfloat16.")
OUTPUT = flags.DEFINE_string("output", None, "Also append the result to this JSON-lines file.")


def main(_: list[str]) -> None:
    cifar = NETWORK.value.startswith("cifar")
    side, classes = (32, 10) if cifar else (224, 1000)
    remat = tuple(int(stage) for stage in REMAT.value)
    settings = ModelConfig(name=NETWORK.value, dtype=DTYPE.value, scan_blocks=SCAN.value, remat=remat)
    model = resnet.build(settings, BatchNormConfig(), classes)
    schedule = make_schedule(ScheduleConfig(), 0.1)
    optimizer = make_optimizer(OptimizerConfig())
    mesh = parallel.make_mesh(1)
    pixels = {name: jax.ShapeDtypeStruct((1, 1, 3), "float32") for name in ("mean", "std")}
    state = abstract_state(model, optimizer, (side, side, 3), pixels, parallel.replicated(mesh))
    if SCAN.value:
        state = jax.eval_shape(stack_blocks, state)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH.value, side, side, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((BATCH.value,), "int32"),
    }
    began = time.perf_counter()
    lowered = compile_train_step(make_step(model, optimizer, schedule, 0), mesh).lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    result = {
        "network": NETWORK.value,
        "batch": BATCH.value,
        "dtype": DTYPE.value,
        "scan": SCAN.value,
        "remat": remat,
        "trace_seconds": round(traced - began, 1),
        "compile_seconds": round(time.perf_counter() - traced, 1),
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result), flush=True)
    if OUTPUT.value:
        with open(OUTPUT.value, "a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    app.run(main)
