"""What one training step costs: memory that XLA plans, and the network's own arithmetic."""

import dataclasses

import jax

from resnet_jax.analysis.peaks import peak_flops
from resnet_jax.analysis.summary import summarize, total
from resnet_jax.training.experiment import Experiment

PASSES = 3  # forward, and backward once for the activations and once for the weights


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one update.

    Attributes:
      flops: of the network's convolutions and matrix products for one image, forward and backward, a multiply-add counted
        as two. What is computed again (`model.remat`) does not count.
      images: per step, over all devices.
      devices: number of them.
      peak: FLOP/s of one device at most, in the run's dtype; None: not known.
      arguments, temporary: bytes on one device, of the state and the data that it gets, and of what the step needs besides;
        None: XLA does not say.
      memory: bytes that a device has; None: it does not say.
    """

    flops: int
    images: int
    devices: int
    peak: float | None
    arguments: int | None
    temporary: int | None
    memory: int | None

    def utilisation(self, images_per_second: float) -> float | None:
        """Model FLOPs utilisation: the share of the devices' peak that this speed uses, in [0, 1]."""
        return images_per_second * self.flops / (self.peak * self.devices) if self.peak else None

    def __str__(self) -> str:
        parts = [f"a step: {self.images * self.flops / 1e9:,.1f} GFLOP ({self.flops / 1e9:.3g} per image)"]
        if self.peak:
            parts.append(f"at best {self.peak * self.devices / self.flops:,.0f} images/s")
        if self.temporary is not None:
            there = f" of {_size(self.memory)}" if self.memory else ""
            needs = f"{_size(self.arguments + self.temporary)}{there} on each device"
            parts.append(f"{needs}: state and data {_size(self.arguments)}, temporary {_size(self.temporary)}")
        return "; ".join(parts)


def step_cost(run: Experiment, compiled: jax.stages.Compiled) -> StepCost:
    """The cost of a run's compiled step (`compile` of a feed)."""
    device, memory = run.mesh.local_devices[0], compiled.memory_analysis()
    stats = device.memory_stats() if device in jax.local_devices() else None  # else compiled for a device elsewhere
    network = run.model.clone(scan_blocks=False)  # products inside a loop would be counted once
    return StepCost(
        flops=2 * PASSES * total(summarize(network, run.image_shape)).multiply_adds,
        images=run.config.batch_size,
        devices=run.mesh.size,
        peak=peak_flops(device.device_kind, run.config.model.dtype, run.config.matmul_precision),
        arguments=memory.argument_size_in_bytes if memory else None,
        temporary=memory.temp_size_in_bytes if memory else None,
        memory=(stats or {}).get("bytes_limit"),
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
