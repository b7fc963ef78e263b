"""Sets that are held in memory or made on demand: CIFAR-10, digits, synthetic images."""

import pathlib
import pickle
from typing import Any

import numpy as np

from resnet_jax.data.sources.base import Record
from resnet_jax.errors import UserError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class ArrayStatistics:
    """Of images in memory, computed when asked for."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def pixel_mean(self) -> np.ndarray:
        """float64 `[height, width, channels]`."""
        return self._images.mean(0, dtype=np.float64)

    def channel_mean(self) -> np.ndarray:
        """float64 `[channels]`."""
        return self._images.mean((0, 1, 2), dtype=np.float64)

    def channel_std(self) -> np.ndarray:
        """float64 `[channels]`."""
        return self._images.std((0, 1, 2), dtype=np.float64)


class ArraySource:
    """A data set that fits in memory.

    Attributes:
      images: uint8 `[count, height, width, channels]`.
      labels: int32 `[count]`.
      classes: names of the classes.
      statistics: of the images.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str):
        self.images, self.labels = images, labels.astype(np.int32)
        self.classes, self.channels, self._name = classes, images.shape[-1], name
        self.statistics = ArrayStatistics(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), f"{self._name}[{index}]")


class SyntheticSource:
    """Noise tinted by class, made on demand: no data needed, and there is something to learn."""

    channels = 3

    def __init__(self, count: int, num_classes: int, size: int, seed: int):
        self.classes = tuple(f"class{i}" for i in range(num_classes))
        self._count, self._size, self._seed = count, size, seed
        self._tint = np.random.Generator(np.random.Philox(key=[0, 0])).integers(0, 128, (num_classes, 3), np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        label = index % len(self.classes)
        rng = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        noise = rng.integers(0, 128, (self._size, self._size, 3), np.uint8)
        return Record(noise + self._tint[label], label, f"synthetic[{index}]")


def digits(split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey (Alpaydin, Kaynak 1998); every fifth is held out (360)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    held_out = np.arange(len(data.target)) % 5 == 0
    chosen = ~held_out if split == "train" else held_out
    images = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
    return ArraySource(images, data.target[chosen], tuple("0123456789"), f"digits/{split}")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers and nothing else: a pickle can otherwise run any code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _read_cifar_binary(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    if not raw.size or raw.size % 3073:
        raise UserError(f"{path}: {raw.size} bytes are not whole records of 3073; download CIFAR-10 again")
    records = raw.reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_cifar_pickle(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
    except Exception as error:  # a broken pickle can raise almost anything
        raise UserError(f"{path}: not a CIFAR-10 batch ({error}); download it again") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape != (len(labels), 3072):
        raise UserError(f"{path}: expected uint8 pixels [images, 3072], found {pixels.dtype} {list(pixels.shape)}")
    return pixels, labels


def cifar10(root: str, split: str) -> ArraySource:
    """CIFAR-10 in the official binary (`*.bin`) or Python (pickle) layout, in `root` or its usual subfolder."""
    base = pathlib.Path(root)
    if not base.is_dir():
        raise UserError(f"data.root={root}: no such folder; give the one that holds cifar-10-batches-bin or -py")
    for folder, suffix, read in (
        (base / "cifar-10-batches-bin", ".bin", _read_cifar_binary),
        (base / "cifar-10-batches-py", "", _read_cifar_pickle),
        (base, ".bin", _read_cifar_binary),
        (base, "", _read_cifar_pickle),
    ):
        names = [f"data_batch_{i}{suffix}" for i in range(1, 6)] if split == "train" else [f"test_batch{suffix}"]
        if not any((folder / name).is_file() for name in names):
            continue
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder}: {name} is missing; unpack CIFAR-10 again")
        parts = [read(folder / name) for name in names]
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if labels.max() > 9 or labels.min() < 0:
            raise UserError(f"{folder}: labels outside 0 to 9; this is not CIFAR-10")
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return ArraySource(images, labels, CIFAR10_CLASSES, f"cifar10/{split}")
    raise UserError(
        f"data.root={root}: no CIFAR-10 in it; expected data_batch_1.bin ... test_batch.bin (binary version) or "
        "data_batch_1 ... test_batch (Python version), there or in cifar-10-batches-bin or -py"
    )
