"""The host's CPU as JAX's device. What is set here must be set before JAX starts its backends.

Measured on two AMD EPYC cores, jax 0.10.2 (results/README.md): XLA's CPU backend runs a convolution with at most 64 output
channels on one thread, so one device per core trains faster than one device with two threads. And it asks for all
temporary memory anew at every step (2.3 GB for ResNet-50 with 16 images); getting that in pages of 4 kB costs a tenth to
a quarter of the step.
"""

import os
import pathlib
import sys

from resnet_jax import validation
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

MOST_DEVICES = 8  # every batch norm waits for all of them
LEAST_PIXELS = 2**15  # of input per device and step; on digits (4,096 in all) two devices took 1.3 times as long as one
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this program again with memory in huge pages, where Linux gives them only to those who ask.

    glibc (2.35 and newer) asks for them if told so in the environment, which it reads once, when a program starts. The
    process keeps its number, and worker processes inherit the setting. It does nothing where GLIBC_TUNABLES is set already.
    """
    try:
        on_request = "[madvise]" in _HUGE_PAGES.read_text()
    except OSError:
        return
    if on_request and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_all_cores(config: TrainConfig, processes: int = 1) -> None:
    """Makes one CPU device per core, as far as they can share the batch with those of all `processes`; with
    `config.devices`, that many.

    It leaves alone a number of devices that XLA_FLAGS or jax_num_cpu_devices sets.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "") and jax.config.jax_num_cpu_devices < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", config.devices or cpu_devices(config, cores, processes))


def cpu_devices(config: TrainConfig, cores: int, processes: int = 1) -> int:
    """The largest number of devices per process, at most one per core, that can share the batch and its batch-norm groups,
    and have enough to do."""
    busy = config.batch_size * config.data.image_size**2 // (LEAST_PIXELS * processes)
    for count in range(min(cores, MOST_DEVICES, busy), 1, -1):
        try:
            validation.check_devices(config, count * processes)
        except UserError:
            continue
        return count
    return 1
