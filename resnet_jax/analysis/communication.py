"""What devices tell each other in one training step, read from the compiled step itself.

    python -m resnet_jax.analysis.communication --config=configs/resnet50.py --devices=8,64,512

It compiles the real step for so many virtual CPU devices, with two images each (what is exchanged has the size of the
parameters and of the channels, not of the batch), once with batch norm over the whole batch and once over groups within a
device, and prints Markdown tables. No data is read and nothing is run.

The time of an all-reduce of b bytes over n devices is taken as

    2 (n - 1) / n * b / bandwidth  +  latency,    latency = base + 2 log2(n) * hop

the bandwidth of a ring (each device sends and receives every byte twice, but for its own part), the latency of a tree.
"""

import collections
import dataclasses
import math
import re

import jax
from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.training import experiment
from resnet_jax.training.compiled import compile_step

IMAGES = 2  # per device: more than one, so that a group within a device has something to normalise

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_DEFINITION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ", re.MULTILINE)
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = .*? ({_KINDS})(?:-start)?\((.*?)\), ")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor that a collective operation carries.

    Attributes:
      purpose: gradients (of kernels and the head), 'batch norm forward' (statistics), 'batch norm backward' (sums of the
        gradient, which are also the gradients of scales and biases), or metrics (loss, correct answers).
      bytes: on each device.
    """

    purpose: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation: its kind, such as 'all-reduce', and the tensors in it."""

    kind: str
    tensors: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """On each device."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def for_batch_norm(self) -> bool:
        """Whether all it carries belongs to batch norm."""
        return all(tensor.purpose.startswith("batch norm") for tensor in self.tensors)


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects devices.

    Attributes:
      name: of it.
      bandwidth: bytes/s that a device sends to its neighbour in a ring, in one direction.
      base, hop: seconds; see the module's formula.
      most: devices that it connects; None: any number.
    """

    name: str
    bandwidth: float
    base: float
    hop: float
    most: int | None = None


# TPU: jax-ml.github.io/scaling-book/tpus: ICI one way per link, hop 0.5 us (question 5), pods of 16 x 16 and 16 x 20 x 28.
# NVLink 4: NVIDIA's H100 data sheet, 900 GB/s in both directions; 8 GPUs in an HGX board. Ethernet: its nominal rate, one
# port for each device. Latencies of GPUs: NCCL's own model (src/graph/tuning.cc), tree with protocol LL.
LINKS = (
    Link("TPU v5e ICI", 5e10, 0, 0.5e-6, 256),
    Link("TPU v6e ICI", 1e11, 0, 0.5e-6, 256),
    Link("TPU v5p ICI", 1e11, 0, 0.5e-6, 8960),
    Link("NVLink 4", 4.5e11, 4.4e-6, 0.52e-6, 8),
    Link("400 Gb/s Ethernet", 5e10, 4.4e-6, 5e-6),
    Link("100 Gb/s Ethernet", 1.25e10, 4.4e-6, 5e-6),
)


def collectives(hlo: str) -> list[Collective]:
    """The collective operations in the text of a compiled program (`jax.stages.Compiled.as_text`), in its order.

    An operation inside a loop counts once.
    """
    lines = hlo.splitlines()
    defined = {match[1]: line for line in lines if (match := _DEFINITION.match(line))}
    found = []
    for line in lines:
        if match := _COLLECTIVE.match(line):
            names = re.findall(r"%([\w.\-]+)", match[2])
            found.append(Collective(match[1], tuple(_tensor(defined[name]) for name in names)))
    return found


def _tensor(definition: str) -> Tensor:
    dtype, shape = re.search(r" = (\w+)\[([\d,]*)\]", definition).groups()
    size = math.prod(int(length) for length in shape.split(",") if length)
    operation = re.search(r'op_name="([^"]*)"', definition)
    name = operation[1] if operation else ""
    backward = "transpose(" in name
    if re.search(r"/bn\d*/", name):
        purpose = f"batch norm {'backward' if backward else 'forward'}"
    else:
        purpose = "gradients" if backward else "metrics"
    return Tensor(purpose, size * _BYTES[dtype])


def compiled_text(config: TrainConfig, devices: int, grouped: bool) -> str:
    """The compiled training step of a config's network on so many devices, with batch norm over all images or over those
    of a device."""
    normalise = dataclasses.replace(config.batch_norm, group_size=IMAGES if grouped else None)
    config = dataclasses.replace(config, devices=devices, batch_size=IMAGES * devices, batch_norm=normalise)
    return compile_step(experiment.build(config, config.model.num_classes or 1000, channels=3)).as_text()


def seconds(tensors_bytes: float, count: int, link: Link, devices: int) -> float:
    """The time of `count` all-reduces of so many bytes together, one after the other (the formula above)."""
    latency = link.base + 2 * math.log2(devices) * link.hop
    return 2 * (devices - 1) / devices * tensors_bytes / link.bandwidth + count * latency


def total_bytes(found: list[Collective]) -> collections.Counter:
    """Bytes by purpose."""
    sums = collections.Counter()
    for operation in found:
        for tensor in operation.tensors:
            sums[tensor.purpose] += tensor.bytes
    return sums


def step_seconds(found: list[Collective], link: Link, devices: int, grouped: bool) -> tuple[float, float]:
    """(seconds that can pass during the backward pass, seconds that the step waits for).

    Gradients, and with groups within a device the running statistics, are needed only at the step's end. With batch norm
    over all images each layer waits for its statistics, and for their gradients on the way back.
    """
    waits = [operation for operation in found if operation.for_batch_norm and not grouped]
    rest = [operation for operation in found if operation not in waits]
    hidden, waited = (
        seconds(sum(operation.bytes for operation in part), len(part), link, devices) for part in (rest, waits)
    )
    return hidden, waited


DEVICES = flags.DEFINE_list("devices", ["8", "64", "512"], "Numbers of devices.")


def main(config: TrainConfig) -> None:
    """Prints what is exchanged, and how long that takes on which links."""
    try:
        numbers = [int(number) for number in DEVICES.value]
    except ValueError as error:
        raise UserError(f"--devices={','.join(DEVICES.value)}: give numbers, such as 8,64,512") from error
    if min(numbers) < 2:
        raise UserError("--devices: at least 2; one device exchanges nothing")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(numbers))
    steps = {(n, g): collectives(compiled_text(config, n, g)) for n in numbers for g in (False, True)}
    print(sizes_table(config.model.name, steps))
    print()
    print(times_table(config.model.name, steps))


def sizes_table(name: str, steps: dict[tuple[int, bool], list[Collective]]) -> str:
    """What is exchanged per step, as Markdown."""
    lines = [
        f"| {name}: devices | batch norm over | operations | with batch norm's data only | kernels' gradients, MB "
        "| batch norm forward, MB | backward, MB | metrics, bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (devices, grouped), found in steps.items():
        kinds = collections.Counter(operation.kind for operation in found)
        sums, only = total_bytes(found), sum(operation.for_batch_norm for operation in found)
        lines.append(
            f"| {devices} | {'groups within a device' if grouped else 'all images'} "
            f"| {', '.join(f'{count} {kind}' for kind, count in kinds.items())} | {only} | {sums['gradients'] / 1e6:.2f} "
            f"| {sums['batch norm forward'] / 1e6:.3f} | {sums['batch norm backward'] / 1e6:.3f} | {sums['metrics']} |"
        )
    return "\n".join(lines)


def times_table(name: str, steps: dict[tuple[int, bool], list[Collective]]) -> str:
    """How long the exchange takes on every link that connects so many devices, as Markdown."""
    lines = [
        f"| {name}: link | devices | gradients, ms | batch norm of all images, ms | sum, ms | groups within a device, ms |",
        "|---|---|---|---|---|---|",
    ]
    for link in LINKS:
        for devices in sorted({devices for devices, _ in steps}):
            if link.most is None or devices <= link.most:
                hidden, waited = step_seconds(steps[devices, False], link, devices, grouped=False)
                grouped, _ = step_seconds(steps[devices, True], link, devices, grouped=True)
                values = (hidden, waited, hidden + waited, grouped)
                lines.append(f"| {link.name} | {devices} | " + " | ".join(f"{1e3 * value:.2f}" for value in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file, needs_data=False)
