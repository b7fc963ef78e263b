"""What every source is: records by index. A source can be pickled, since worker processes get a copy."""

import dataclasses
import importlib
from types import ModuleType
from typing import Protocol

import numpy as np

from resnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One example: an encoded image (bytes) or pixels (uint8 `[height, width, channels]`), its class and its name."""

    image: bytes | np.ndarray
    label: int
    name: str


class Source(Protocol):
    """A data set: `len(source)` records, `source[i]` the i-th, in an order that depends on the data alone.

    Reading is thread-safe. A source may also have `class_names` (for people, where `classes` are wnids) and
    `statistics` (`Statistics`).
    """

    classes: tuple[str, ...]
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Statistics(Protocol):
    """Means and deviations of a set's pixels, in [0, 255], float64."""

    def pixel_mean(self) -> np.ndarray:
        """`[size, size, channels]`."""

    def channel_mean(self) -> np.ndarray:
        """`[channels]`."""

    def channel_std(self) -> np.ndarray:
        """`[channels]`."""


def require(module: str, package: str, what: str) -> ModuleType:
    """Imports an optional library, or says in one line how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the Python package {package} ({error}): pip install {package}") from error


def check_index(index: int, count: int) -> int:
    """The index itself, counted from the end where negative; IndexError outside (which ends a for loop)."""
    index = int(index)
    if not -count <= index < count:
        raise IndexError(f"record {index} of {count}")
    return index % count
