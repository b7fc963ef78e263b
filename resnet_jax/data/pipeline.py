"""Order, batches and workers. Global batch k is a pure function of (seed, k); nothing here holds state.

Training reads one endless stream of positions 0, 1, 2, ...; each epoch is a permutation of its own. Global batch k is
positions k * batch_size to (k + 1) * batch_size, and an example's augmentation is seeded by (seed, position). So a run
can start at any step at once, and neither hosts nor workers nor threads change a single pixel.
"""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from resnet_jax.config import DataConfig
from resnet_jax.data.augment import Example, Transform
from resnet_jax.data.decode import decode
from resnet_jax.data.sources import Record, Source
from resnet_jax.errors import UserError

Batch = dict[str, np.ndarray]


def _load(source: Source, index: int, transform: Transform, rng: np.random.Generator | None) -> tuple[Example, Record]:
    record = source[index]
    pixels = decode(record.image, record.name) if isinstance(record.image, bytes) else record.image
    try:
        return transform(pixels, rng), record
    except UserError as error:
        raise UserError(f"{record.name}: {error}") from error


def _stack(examples: Sequence[Example]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class TrainBatches:
    """`batches[k]` is this process's part of global training batch k.

    Attributes of a batch: image uint8 `[rows, size, size, channels]`, label int32 `[rows]`, and window int32
    `[rows, 3]` where the transform gives one.
    """

    def __init__(self, source: Source, transform: Transform, batch_size: int, rows: Sequence[int], seed: int, steps: int):
        """Args: the data, its augmentation, the global batch size, which rows of it to load, the run's seed and length."""
        self._source, self._transform, self._seed = source, transform, seed
        self._batch_size, self._rows, self._steps = batch_size, tuple(rows), steps
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=seed % 2**32).repeat()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        examples = []
        for row in self._rows:
            position = step * self._batch_size + row
            rng = np.random.Generator(np.random.Philox(key=[self._seed, position]))
            example, record = _load(self._source, int(self._order[position]), self._transform, rng)
            examples.append(example | {"label": np.int32(record.label)})
        return _stack(examples)


class EvalBatches:
    """`batches[k]` is this process's part of evaluation batch k: every image once, in order, the last batch padded.

    Attributes of a batch: image uint8 `[rows, size, size, channels]`, label int32 `[rows]`, mask bool `[rows]`, False
    in the padding.
    """

    def __init__(self, source: Source, transform: Transform, batch_size: int, rows: Sequence[int]):
        self._source, self._transform = source, transform
        self._batch_size, self._rows = batch_size, tuple(rows)

    def __len__(self) -> int:
        return math.ceil(len(self._source) / self._batch_size)

    def __getitem__(self, step: int) -> Batch:
        examples = []
        for row in self._rows:
            position = step * self._batch_size + row
            real = position < len(self._source)
            # Padding repeats the first image: its shape is right, and the mask keeps it from counting.
            example, record = _load(self._source, position if real else 0, self._transform, None)
            examples.append(example | {"label": np.int32(record.label), "mask": np.bool_(real)})
        return _stack(examples)


def _worker_init(worker_index: int, worker_count: int) -> None:
    """Leaves Ctrl-C to the main process, and ends a worker whose main process was killed."""
    del worker_index, worker_count
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def iterate(batches: TrainBatches | EvalBatches, start: int, data: DataConfig) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over `batches[start:]`, in order, loaded ahead by threads or worker processes.

    Args:
      batches: by index.
      start: the first one; starting late costs nothing.
      data: `workers` and `threads`.
    """
    encoded = data.source == "folder"
    threads = data.threads or (min(os.cpu_count() or 1, 16) if encoded else 1)
    # One element is a whole batch, so that its content cannot depend on how elements are dealt out to workers.
    dataset = grain.MapDataset.source(batches).slice(slice(start, None))
    loader = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2)))
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads an absl flag here, parsed or not
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=2)
        loader = loader.mp_prefetch(options, worker_init_fn=_worker_init)
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        iterator.close()
