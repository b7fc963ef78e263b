"""Parquet files as the Hugging Face hub has them: a column with image bytes, one with labels, class names in the schema.

Parquet is made for reading whole columns: one image at random costs the reading of its row group (100 images in the
hub's files). Sequential reading is fine. Before training on a large set, pack it (`python -m resnet_jax.data.prepare`).
"""

import bisect
import collections
import fnmatch
import itertools
import json
import threading
from typing import Any

from resnet_jax.data.sources import imagenet, storage
from resnet_jax.data.sources.base import Record, check_index, require
from resnet_jax.errors import UserError

SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "test")}
IMAGE_COLUMNS = ("image", "img", "images", "jpg")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
CACHED_GROUPS = 4


class ParquetSource:
    """`data/train-00000-of-00002.parquet` and so on, in file order. At most a few row groups are held in memory.

    Attributes:
      classes, class_names: from the schema's Hugging Face metadata, else the labels in the training files.
    """

    channels = 3

    def __init__(self, root: str, split: str):
        self._pq = require("pyarrow.parquet", "pyarrow", "data.source='parquet'")
        self._files = _find_files(root, SPLITS[split])
        self._metadata = [self._open(path).metadata for path in self._files]
        features, types = _hub_features(self._metadata[0]), self._metadata[0].schema.to_arrow_schema()
        self._image = _column(self._files[0], features, types.names, "Image", IMAGE_COLUMNS)
        self._label = _column(self._files[0], features, types.names, "ClassLabel", LABEL_COLUMNS)
        # (file, row group) of each group, and the position of its first row
        self._groups = [(f, g) for f, meta in enumerate(self._metadata) for g in range(meta.num_row_groups)]
        rows = [self._metadata[f].row_group(g).num_rows for f, g in self._groups]
        self._starts = [0, *itertools.accumulate(rows)]
        names = (features.get(self._label) or {}).get("names")
        self.classes = tuple(names) if names else self._classes_from_labels(root, split)
        self.class_names = imagenet.class_names(self.classes)
        self._reset()
        if len(self):
            self[0]  # a test split without labels says so at once

    def _reset(self) -> None:
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._number = {name: i for i, name in enumerate(self.classes)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_cache", "_lock", "_pq", "_metadata")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pq = require("pyarrow.parquet", "pyarrow", "data.source='parquet'")
        self._metadata = [None] * len(self._files)
        self._reset()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self))
        group = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[group]
        image, label = (column[row].as_py() for column in self._read(group))
        name = f"{self._files[self._groups[group][0]]}[{index}]"
        if isinstance(image, dict):
            name = f"{name}:{image['path']}" if image.get("path") else name
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise UserError(f"{name}: no image bytes in column {self._image!r}; embed the images in the Parquet files")
        return Record(image, self._to_label(label, name), name)

    def _to_label(self, label: Any, name: str) -> int:
        number = self._number.get(label) if isinstance(label, str) else label
        if number is None or not 0 <= number < len(self.classes):
            raise UserError(f"{name}: label {label!r} is none of the {len(self.classes)} classes; is this split labelled?")
        return int(number)

    def _open(self, path: str, metadata: Any = None) -> Any:
        """A file of its own for each use: they are not safe to share between threads."""
        try:
            file = storage.open_binary(path) if storage.is_remote(path) else path
            return self._pq.ParquetFile(file, metadata=metadata, memory_map=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({_line(error)}); download it again") from error

    def _read(self, group: int) -> tuple[Any, Any]:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        file, row_group = self._groups[group]
        columns = self._columns(file, row_group, [self._image, self._label])
        with self._lock:
            self._cache[group] = columns
            while len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
        return columns

    def _columns(self, file: int, row_group: int, names: list[str]) -> tuple[Any, ...]:
        path = self._files[file]
        with self._open(path, self._metadata[file]) as opened:
            self._metadata[file] = opened.metadata
            try:
                table = opened.read_row_group(row_group, columns=names, use_threads=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: row group {row_group} is damaged ({_line(error)}); download it again") from error
        return tuple(table.column(name) for name in names)

    def _classes_from_labels(self, root: str, split: str) -> tuple[str, ...]:
        """All labels of the training files (numbers up to the largest, or the strings in alphabetical order)."""
        if split != "train":
            return ParquetSource(root, "train").classes
        found = {value for file, group in self._groups for value in self._columns(file, group, [self._label])[0].to_pylist()}
        if all(isinstance(value, str) for value in found):
            return tuple(sorted(found))
        if not all(type(value) is int and value >= 0 for value in found):
            raise UserError(f"{self._files[0]}: labels in column {self._label!r} are neither numbers from 0 nor names")
        return tuple(str(i) for i in range(max(found) + 1))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _find_files(root: str, splits: tuple[str, ...]) -> list[str]:
    if not storage.is_folder(root):
        raise UserError(f"data.root={root}: no such folder; give the one that holds data/train-*.parquet")
    for split in splits:
        for folder in (storage.join(root, "data"), root, storage.join(root, split)):
            if not storage.is_folder(folder):
                continue
            names = storage.scan(folder)[1]
            pattern = "*.parquet" if folder.endswith(f"/{split}") else f"{split}[-.]*parquet"
            found = [storage.join(folder, name) for name in names if fnmatch.fnmatchcase(name, pattern)]
            if found:
                return _complete(found)
    raise UserError(f"data.root={root}: no {' or '.join(f'{s}-*.parquet' for s in splits)} there or in data/")


def _complete(files: list[str]) -> list[str]:
    """Refuses a set of files named -00000-of-00005 of which some are missing."""
    tail = files[0].removesuffix(".parquet").rpartition("-of-")[2]
    if tail.isdigit() and int(tail) != len(files):
        raise UserError(f"{files[0]}: {len(files)} of {int(tail)} files are there; download the others")
    return files


def _hub_features(metadata: Any) -> dict[str, Any]:
    """The features that the `datasets` library stores in the schema; {} without them."""
    try:
        stored = json.loads((metadata.metadata or {})[b"huggingface"])
        return dict(stored["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def _column(path: str, features: dict[str, Any], names: list[str], kind: str, usual: tuple[str, ...]) -> str:
    typed = [n for n, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]
    for name in (*(n for n in usual if n in typed), *typed, *usual):
        if name in names:
            return name
    raise UserError(f"{path}: no column {' or '.join(usual)} (found: {', '.join(names)})")
