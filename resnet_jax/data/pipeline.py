"""Order, batches and workers. Global batch k is a pure function of (seed, k); nothing here holds state.

Training reads one endless stream of positions 0, 1, 2, ...; each epoch is a permutation of its own. Global batch k is
positions k * batch_size to (k + 1) * batch_size, and an example's augmentation is seeded by (seed, position). So a run
can start at any step at once, and neither hosts nor workers nor threads change a single pixel.

With repeated augmentation, positions r * n to r * (n + 1) all show the n-th image of the shuffled stream, and draw anew
each. That is said of the global stream: a batch has the same images on any number of hosts, and copies are neighbours.

A broken image is an error, or, with `skip`, replaced in training by the next readable one of the stream (the draw stays
that of the position), and left out in testing. Either way it is a function of (seed, position) and of the files.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from resnet_jax.config import DataConfig, TrainConfig
from resnet_jax.data.augment import Example, Transform, train_transform
from resnet_jax.data.decode import decode
from resnet_jax.data.sources import Record, Source
from resnet_jax.errors import UserError

Batch = dict[str, np.ndarray]


# What a batch says of broken images to the host, and not to the device: their indices in the data set, after a -1 (an
# array in shared memory cannot be empty).
BROKEN = "broken"
TRACKER_IS_QUIET = "ignore:resource_tracker:UserWarning"
ATTEMPTS = 100  # broken images in a row that one example may meet; beyond that it is not the images


def _read(source: Source, index: int) -> tuple[np.ndarray, Record]:
    record = source[index]
    return decode(record.image, record.name) if isinstance(record.image, bytes) else record.image, record


def _transformed(transform: Transform, pixels: np.ndarray, record: Record, rng: np.random.Generator | None) -> Example:
    try:
        return transform(pixels, rng) | {"label": np.int32(record.label)}
    except UserError as error:
        raise UserError(f"{record.name}: {error}") from error


def _stack(examples: Sequence[Example]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def shuffled(source: Source, seed: int) -> grain.MapDataset:
    """An endless stream of indices of the source: each epoch is a permutation of its own."""
    return grain.MapDataset.range(len(source)).shuffle(seed=seed % 2**32).repeat()


class TrainBatches:
    """`batches[k]` is this process's part of global training batch k.

    Attributes of a batch: image uint8 `[rows, size, size, channels]`, label int32 `[rows]`, what else the transform gives
    (`augment`), and with `skip` the indices of broken images (`BROKEN`).
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch_size: int,
        rows: Sequence[int],
        seed: int,
        steps: int,
        *,
        repeats: int = 1,
        skip: bool = False,
    ):
        """Args: the data, its augmentation, the global batch size, which rows of it to load, the run's seed and length.

        `repeats`: positions in a row with the same image; `skip`: replace broken images.
        """
        self.source, self._transform, self._seed = source, transform, seed
        self._batch_size, self._rows, self._steps = batch_size, tuple(rows), steps
        self._repeats, self._skip = repeats, skip
        self.order = shuffled(source, seed)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        examples, broken = [], [-1]
        for row in self._rows:
            position = step * self._batch_size + row
            rng = np.random.Generator(np.random.Philox(key=[self._seed, position]))
            examples.append(_transformed(self._transform, *self._image(position // self._repeats, broken), rng))
        return _stack(examples) | ({BROKEN: np.array(broken)} if self._skip else {})

    def _image(self, place: int, broken: list[int]) -> tuple[np.ndarray, Record]:
        """The image at a place of the shuffled stream or, with `skip`, the first readable one from there on."""
        for attempt in range(ATTEMPTS):
            index = int(self.order[place + attempt])
            try:
                return _read(self.source, index)
            except UserError as error:
                if not self._skip:
                    raise
                broken.append(index)
                last = error
        raise UserError(f"{ATTEMPTS} images in a row cannot be read; the last one: {last}") from last


def train_batches(config: TrainConfig, source: Source, rows: Sequence[int], steps: int) -> TrainBatches:
    """The training stream of a config: its augmentation, order and treatment of broken images; this process's rows of it."""
    return TrainBatches(
        source,
        train_transform(config),
        config.batch_size,
        rows,
        config.seed,
        steps,
        repeats=config.data.repeats,
        skip=config.data.on_error == "skip",
    )


class EvalBatches:
    """`batches[k]` is this process's part of evaluation batch k: every image once, in order, the last batch padded.

    Attributes of a batch: image uint8 `[rows, size, size, channels]`, label int32 `[rows]`, mask bool `[rows]`, False
    in the padding and for broken images, and with `skip` skipped, bool `[rows]`, True for broken images, and their indices
    (`BROKEN`).
    """

    def __init__(self, source: Source, transform: Transform, batch_size: int, rows: Sequence[int], skip: bool = False):
        """Args: the data, the view of it, the global batch size, the rows of it to load; `skip`: leave broken images out."""
        self.source, self._transform, self._skip = source, transform, skip
        self._batch_size, self._rows = batch_size, tuple(rows)

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self._batch_size)

    def __getitem__(self, step: int) -> Batch:
        examples, broken = [], [-1]
        for row in self._rows:
            position = step * self._batch_size + row
            real, readable = position < len(self.source), True
            try:
                # Padding repeats the first image: its shape is right, and the mask keeps it from counting.
                pixels, record = _read(self.source, position if real else 0)
            except UserError:
                if not self._skip:
                    raise
                readable = False
                pixels, record = self._readable()
                broken += [position] if real else []
            example = _transformed(self._transform, pixels, record, None) | {"mask": np.bool_(real and readable)}
            examples.append(example | ({"skipped": np.bool_(real and not readable)} if self._skip else {}))
        return _stack(examples) | ({BROKEN: np.array(broken)} if self._skip else {})

    def _readable(self) -> tuple[np.ndarray, Record]:
        for index in range(min(ATTEMPTS, len(self.source))):
            try:
                return _read(self.source, index)
            except UserError as error:
                last = error
        raise UserError(f"the first {index + 1} test images cannot be read; the last of them: {last}") from last


class Skipped:
    """Names each broken image once and counts them.

    Attributes:
      count: how often one was skipped.
      names: of the images.
    """

    def __init__(self, say: Callable[[str], None] = print):
        self._say = say
        self.count = 0
        self.names: dict[int, str] = {}

    def add(self, source: Source, indices: Sequence[int]) -> None:
        """Takes the indices of a batch (`BROKEN`)."""
        for index in indices:
            self.count += 1
            if index in self.names:
                continue
            try:
                self.names[index] = source[index].name
                _read(source, index)
                reason = f"{self.names[index]}: broken when it was read, and readable now"
            except UserError as error:
                self.names.setdefault(index, str(error).split(":")[0])
                reason = str(error)
            self._say(f"skipped: {reason}")


def _worker_init(worker_index: int, worker_count: int) -> None:
    """Leaves Ctrl-C to the main process, and ends a worker whose main process was killed."""
    del worker_index, worker_count
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().pid  # and not os.getppid(): it may have been killed while this one started

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def iterate(
    batches: TrainBatches | EvalBatches, start: int, data: DataConfig, skipped: Skipped | None = None
) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over `batches[start:]`, in order, loaded ahead by threads or worker processes.

    Args:
      batches: by index.
      start: the first one; starting late costs nothing.
      data: `workers` and `threads`.
      skipped: is told of broken images.
    """
    encoded = data.source not in ("cifar10", "digits", "synthetic")
    threads = data.threads or (min(os.cpu_count() or 1, 16) if encoded else 1)
    # One element is a whole batch, so that its content cannot depend on how elements are dealt out to workers.
    dataset = grain.MapDataset.source(batches).slice(slice(start, None))
    loader = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2)))
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads an absl flag here, parsed or not
            flags.FLAGS.mark_as_parsed()
        # Batches on their way when a run ends are cleared away by Python's own tracker process, which would complain.
        if TRACKER_IS_QUIET not in sys.warnoptions:
            sys.warnoptions.append(TRACKER_IS_QUIET)  # it inherits them
        options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=2)
        loader = loader.mp_prefetch(options, worker_init_fn=_worker_init)
    iterator = iter(loader)
    try:
        yield _without_broken(iterator, batches, skipped)
    finally:
        iterator.close()


def _without_broken(
    iterator: Iterator[Batch], batches: TrainBatches | EvalBatches, skipped: Skipped | None
) -> Iterator[Batch]:
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # Grain's words for a worker that is gone
                raise
            raise UserError(
                "a data worker was killed (by the system, if memory ran out); start again with fewer data.workers, or 0 to "
                "load in threads"
            ) from error
        broken = batch.pop(BROKEN, None)
        if broken is not None and skipped is not None:
            skipped.add(batches.source, [int(index) for index in broken[1:]])
        yield batch
