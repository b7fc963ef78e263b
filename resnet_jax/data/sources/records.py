"""Our packed format: sharded ArrayRecord files and a `dataset.json` that describes them (`data.prepare` writes both).

A record is a header (little-endian: version, kind, length of the name, label; for pixels also height, width, channels),
the name in UTF-8, then the image as it was encoded, or its pixels. `dataset.json` has the classes, the number of
records and the SHA-256 of every shard, and the statistics of the training pixels.
"""

import dataclasses
import io
import json
import os
import struct
from typing import Any

import numpy as np

from resnet_jax.data.sources import storage
from resnet_jax.data.sources.base import Record, check_index, require
from resnet_jax.errors import UserError

DESCRIPTION = "dataset.json"
FORMAT, VERSION = "resnet_jax records", 1
ENCODED, PIXELS = 0, 1
_HEADER = struct.Struct("<BBHI")  # version, kind, bytes of the name, label
_SHAPE = struct.Struct("<IIB")  # height, width, channels


def pack(record: Record) -> bytes:
    """One record as bytes."""
    name = record.name.encode()
    if isinstance(record.image, bytes):
        return _HEADER.pack(VERSION, ENCODED, len(name), record.label) + name + record.image
    shape = _SHAPE.pack(*record.image.shape)
    return _HEADER.pack(VERSION, PIXELS, len(name), record.label) + shape + name + record.image.tobytes()


def unpack(data: bytes) -> Record:
    """The inverse of `pack`; pixels are a read-only view of the data.

    Raises:
      ValueError: not a packed record.
    """
    if len(data) < _HEADER.size:
        raise ValueError(f"{len(data)} bytes are no record")
    version, kind, length, label = _HEADER.unpack_from(data)
    if version != VERSION or kind not in (ENCODED, PIXELS):
        raise ValueError(f"a record of version {version} and kind {kind}; this version reads {VERSION}")
    start = _HEADER.size + (_SHAPE.size if kind == PIXELS else 0)
    name = data[start : start + length].decode()
    if kind == ENCODED:
        return Record(data[start + length :], label, name)
    shape = _SHAPE.unpack_from(data, _HEADER.size)
    return Record(np.frombuffer(data, np.uint8, offset=start + length).reshape(shape), label, name)


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:05d}-of-{shards:05d}.arrayrecord"


def read_description(root: str) -> dict[str, Any]:
    """The contents of `dataset.json`.

    Raises:
      UserError: it is missing or not of this format.
    """
    path = storage.join(root, DESCRIPTION)
    if not storage.is_file(path):
        raise UserError(f"data.root={root}: no {DESCRIPTION} in it; pack a data set with python -m resnet_jax.data.prepare")
    try:
        description = json.loads(storage.read(path))
        known = description["format"] == FORMAT and description["version"] == VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the description of packed records ({error}); pack the data set again") from error
    if not known:
        raise UserError(f"{path}: of another format or version; pack the data set again")
    return description


@dataclasses.dataclass(frozen=True)
class StoredStatistics:
    """Statistics that were computed when the set was packed: of every image, its centre at `size` x `size`.

    Attributes:
      path: of the per-pixel mean, float64 `[size, size, channels]`, `.npy`.
      mean, std: per channel.
    """

    path: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixel_mean(self) -> np.ndarray:
        """float64 `[size, size, channels]`."""
        try:
            return np.load(io.BytesIO(storage.read(self.path)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{self.path}: not an array ({error}); pack the data set again") from error

    def channel_mean(self) -> np.ndarray:
        """float64 `[channels]`."""
        return np.array(self.mean)

    def channel_std(self) -> np.ndarray:
        """float64 `[channels]`."""
        return np.array(self.std)


class RecordsSource:
    """One split of a packed data set.

    Attributes:
      classes, class_names: wnids (or whatever the classes are called), and names for people.
      channels: of the images.
      statistics: of the training set, None if it was packed without one.
    """

    def __init__(self, root: str, split: str):
        module = require("array_record.python.array_record_data_source", "array_record", "data.source='records'")
        if storage.is_remote(root) and not root.startswith("gs://"):
            raise UserError(f"data.root={root}: ArrayRecord reads local files and gs:// only; copy the folder to a disk")
        description = read_description(root)
        self.classes, self.class_names = tuple(description["classes"]), tuple(description["class_names"])
        self.channels = int(description["channels"])
        self.statistics = _statistics(root, description["statistics"])
        if split not in description["splits"]:
            raise UserError(f"data.root={root}: packed without {split!r} (has: {', '.join(description['splits'])})")
        shards = description["splits"][split]["shards"]
        paths = [storage.join(root, shard["file"]) for shard in shards]
        if not storage.is_remote(root):
            for path, shard in zip(paths, shards, strict=True):
                check_size(path, shard["bytes"])
        self._where = storage.join(root, split)
        # With the number of records in the name, no file is opened before it is read from.
        ranges = [f"{path}[0:{shard['records']}]" for path, shard in zip(paths, shards, strict=True) if shard["records"]]
        if not ranges:
            raise UserError(f"{self._where}: no records; pack the data set again")
        self._data = module.ArrayRecordDataSource(ranges)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        try:
            return unpack(self._data[check_index(index, len(self._data))])
        except (RuntimeError, ValueError) as error:
            message = " ".join(str(error).split())[:200]
            raise UserError(f"{self._where}[{index}]: damaged ({message}); pack the data set again") from error


def _statistics(root: str, stored: dict[str, Any] | None) -> StoredStatistics | None:
    if stored is None:
        return None
    path = storage.join(root, stored["pixel_mean"])
    return StoredStatistics(path, tuple(stored["channel_mean"]), tuple(stored["channel_std"]))


def check_size(path: str, expected: int) -> None:
    """Refuses a shard that is missing or was cut (ArrayRecord takes half a file for an empty one).

    Raises:
      UserError: naming the file.
    """
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    if found != expected:
        raise UserError(f"{path}: {found} bytes, expected {expected}; copy it or pack the data set again")
