"""Devices: one named mesh, the batch split over it, everything else replicated. The same code for 1 device and many."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import EXIT_PEER_LOST, UserError

AXIS = "data"


def start_distributed(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    """Joins the other processes of a run; before anything else is asked of JAX.

    Args:
      coordinator: HOST:PORT of process 0; None: found out, together with the rest, on Cloud TPU, GKE and Slurm.
      num_processes, process_id: how many there are, and which one this is.
      timeout: the most seconds that the start waits, and after which a process that is silent counts as lost
        (`training.watchdog`; JAX's own watch takes six times as long).

    Raises:
      UserError: no cluster was found. (Where not everybody comes, the program ends with one line: JAX would abort.)
    """

    def give_up() -> None:
        print(
            f"error: the processes did not meet within {timeout} s{f' at {coordinator}' if coordinator else ''}; check that "
            "all were started, and that each can reach that address",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_PEER_LOST)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        limits = {"initialization_timeout": 6 * timeout, "heartbeat_timeout_seconds": 6 * timeout}
        jax.distributed.initialize(coordinator, num_processes, process_id, **limits)
    except ValueError as error:
        raise UserError(
            f"--distributed: {error} Found neither a Cloud TPU slice, GKE nor Slurm; start one process on each machine with "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    finally:
        timer.cancel()


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_main():
        print(text, flush=True)


def is_main() -> bool:
    """Whether this is process 0, which writes the log."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The value that process 0 has, on all of them."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_of(value: bool) -> bool:
    """Whether it is true on all processes."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.int32(value)).all())


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the first `num_devices` devices (None: all of them, on all hosts).

    Raises:
      UserError: there are not that many.
    """
    devices = jax.devices()
    if num_devices is not None and jax.process_count() > 1:
        raise UserError(f"devices={num_devices}: several processes use all of their devices; leave it None")
    if num_devices is not None and num_devices > len(devices):
        raise UserError(f"devices={num_devices}: this machine has {len(devices)} ({devices[0].platform})")
    return mesh_of(devices[:num_devices])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """A one-dimensional mesh over these devices."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters and metrics: a copy on every device."""
    return NamedSharding(mesh, P())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: consecutive examples on consecutive devices."""
    return NamedSharding(mesh, P(AXIS))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch that this process's devices hold, in order."""
    rows: set[int] = set()
    for (part,) in by_batch(mesh).addressable_devices_indices_map((batch_size,)).values():
        rows.update(range(*part.indices(batch_size)))
    return sorted(rows)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Makes the global batch from the rows that each process loaded (`local_rows`).

    Args:
      batch: NumPy arrays whose first axis is this process's rows.
      mesh: of all devices.
      batch_size: of the global batch.

    Returns:
      Global arrays, `[batch_size, ...]`, split over the mesh.
    """
    sharding = by_batch(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    place = {row: index for index, row in enumerate(local_rows(mesh, batch_size))}

    def put(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return local[place[start] : place[stop - 1] + 1]

        return _put_parts(part, (batch_size, *local.shape[1:]), sharding)

    return {name: put(local) for name, local in batch.items()}


def _put_parts(
    part: Callable[[tuple[slice, ...]], np.ndarray], shape: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    """A global array of this process's parts. (JAX's own make_array_from_callback trips its transfer guard.)"""
    places = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def by_column(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches, `[batches, batch_size, ...]`."""
    return NamedSharding(mesh, P(None, AXIS))


def put_columns(batches: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits several batches, `[batches, batch_size, ...]`, each over the mesh; every process has them whole."""

    def put(whole: np.ndarray) -> jax.Array:
        return _put_parts(lambda index: whole[index], whole.shape, by_column(mesh))

    return {name: put(whole) for name, whole in batches.items()}


def with_wish(batch: dict[str, np.ndarray], stop: bool, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Adds whether this process wants to stop, `stop` int32 of the labels' shape, for the others; alone it asks nobody."""
    return batch if jax.process_count() == 1 else batch | {"stop": np.full(shape, stop, np.int32)}


def put_replicated(tree, mesh: Mesh):
    """Copies a tree of host arrays, the same on every process, to every device of the mesh."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_parts(lambda _: leaf, np.shape(leaf), sharding), tree)


def one_at_a_time(result, mesh: Mesh):
    """Waits for a result where a program must not start before the last one has ended: on several CPU devices.

    There every device that waits for the others in a collective operation holds one of the few threads. Two programs under
    way can hold them all, each waiting for a device that has none, until XLA ends the process after 40 s. (jax 0.10.2, two
    devices on two cores: within seconds where training steps are queued without limit, never in 6,200 steps one by one.)
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(result)
    return result


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch of at least `batch_size` that the devices share evenly."""
    return -(-batch_size // mesh.size) * mesh.size
