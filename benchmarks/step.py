"""Training and inference speed beside PyTorch's: two processes on the same machine, taking turns.

    python benchmarks/step.py                                    # ResNet-50 at 224, batch 16; ResNet-20 at 32, batch 128
    python benchmarks/step.py --network=resnet50 --batches=64,256,1024 --dtypes=float32,bfloat16        # on a GPU
    python benchmarks/step.py --network=resnet50 --batches=256 --dtypes=bfloat16 --profile=profiles    # where the time goes
    python benchmarks/step.py --network=resnet50 --batches=256 --against=deterministic     # what it costs on a GPU
    python benchmarks/step.py --torch_python=OTHER_ENV/bin/python       # where torch and torchvision are installed

Both sides run the same network (ImageNet: torchvision's, so stride in the 3x3; CIFAR: section 4.2 with option A), the
whole step: forward, backward, SGD with momentum, on one batch that is already on the device. PyTorch runs channels last;
on a GPU with AMP for bfloat16 and `torch.compile`. They are timed in turns, so that what else the machine does hits both;
the ratio is the median over rounds, with its smallest and largest value.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

from absl import app, flags

from resnet_jax.analysis.peaks import peak_flops

HERE = pathlib.Path(__file__).parent
NETWORKS = flags.DEFINE_list("network", ["resnet50", "cifar_resnet20"], "Networks to time.")
BATCHES = flags.DEFINE_list("batches", None, "Batch sizes; default: 16 for ImageNet's networks, 128 for CIFAR's.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "float32, bfloat16.")
MODES = flags.DEFINE_list("modes", ["train", "infer"], "train, infer.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each side.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of a turn, about.")
TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "The Python that has torch and torchvision.")
AGAINST = flags.DEFINE_enum(
    "against", "torch", ["torch", "deterministic"], "The other side: PyTorch, or our own step with deterministic=True."
)
PROFILE = flags.DEFINE_string("profile", None, "Also profile three of our steps into this folder; prints the slowest parts.")
OUTPUT = flags.DEFINE_string("output", None, "Also append each result to this JSON-lines file.")


class Side:
    """A worker process that times steps when told to."""

    def __init__(self, python: str, script: str, job: dict, **variables: str):
        env = os.environ | {"PYTHONPATH": str(HERE.parent)} | variables
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.ready = self._read()

    def _read(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a side ended with {self._process.wait()}; its messages are above")

    def time(self, steps: int) -> dict:
        """Runs so many steps; returns seconds and peak memory."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(job: dict) -> dict:
    """Times both sides in turns."""
    sides, other = {}, AGAINST.value
    try:
        if other == "torch":
            sides["jax"] = Side(sys.executable, "step_jax.py", job)
            sides[other] = Side(TORCH_PYTHON.value, "step_torch.py", job)
        else:
            shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two JAX processes on one device
            flag = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"  # what `deterministic=True` sets
            sides["jax"] = Side(sys.executable, "step_jax.py", job, **shared)
            sides[other] = Side(sys.executable, "step_jax.py", job | {"profile": None}, XLA_FLAGS=flag, **shared)
        steps = {name: max(1, round(SECONDS.value / side.time(1)["seconds"])) for name, side in sides.items()}
        speed, memory = {name: [] for name in sides}, {}
        for _ in range(ROUNDS.value):
            for name, side in sides.items():
                side.time(1)  # not counted: the machine may have taken this side's memory away meanwhile
                result = side.time(steps[name])
                speed[name].append(job["batch"] * steps[name] / result["seconds"])
                memory[name] = result["peak_memory_gib"]
    finally:
        for side in sides.values():
            side.close()
    ready = sides["jax"].ready
    ours = statistics.median(speed["jax"]) * ready["flops_per_image"] / 1e12
    peak = peak_flops(ready["device"], job["dtype"])
    ratios = [mine / theirs for mine, theirs in zip(speed["jax"], speed[other], strict=True)]
    return job | {
        "jax_images_per_second": round(statistics.median(speed["jax"]), 1),
        f"{other}_images_per_second": round(statistics.median(speed[other]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "jax_tflops": round(ours, 2),
        "share_of_peak": round(1e12 * ours / peak, 3) if peak else None,
        "slowest": ready.get("slowest"),
        "rounds": ROUNDS.value,
        "peak_memory_gib": memory,
        "versions": {name: side.ready["version"] for name, side in sides.items()},
        "device": sides["jax"].ready["device"],
        "threads": os.cpu_count(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(_: list[str]) -> None:
    for network in NETWORKS.value:
        cifar = network.startswith("cifar")
        for batch in BATCHES.value or [128 if cifar else 16]:
            for dtype in DTYPES.value:
                for mode in MODES.value:
                    job = {
                        "network": network,
                        "size": 32 if cifar else 224,
                        "batch": int(batch),
                        "dtype": dtype,
                        "mode": mode,
                        "profile": f"{PROFILE.value}/{network}_{mode}_{dtype}_{batch}" if PROFILE.value else None,
                    }
                    try:
                        result = compare(job)
                    except RuntimeError as error:
                        print(f"{job}: {error}", file=sys.stderr)
                        continue
                    print(
                        f"{network} {mode} {dtype} batch {batch}: ours {result['jax_images_per_second']} images/s, "
                        f"{AGAINST.value} {result[f'{AGAINST.value}_images_per_second']}, ratio {result['ratio']} "
                        f"({result['ratio_min']} to {result['ratio_max']}); {result['jax_tflops']} TFLOP/s"
                        + (f", {100 * result['share_of_peak']:.0f} % of the peak" if result["share_of_peak"] else ""),
                        flush=True,
                    )
                    for name, milliseconds in result["slowest"] or []:
                        print(f"  {milliseconds:9.2f} ms in three steps  {name}")
                    if OUTPUT.value:
                        with open(OUTPUT.value, "a") as file:
                            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    app.run(main)
