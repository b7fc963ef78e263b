"""Data sets that TensorFlow Datasets prepared as ArrayRecord, read through its `data_source`, without TensorFlow."""

import re
from typing import Any

from resnet_jax.data.sources import imagenet, storage
from resnet_jax.data.sources.base import Record, require
from resnet_jax.errors import UserError

INFO = "dataset_info.json"
SPLITS = {"train": ("train",), "val": ("validation", "test", "val")}


class TfdsSource:
    """One split of a prepared image classification set; images stay encoded.

    Attributes:
      classes, class_names: of the label feature; wnids where that is what it has.
    """

    channels = 3

    def __init__(self, root: str, name: str | None, split: str):
        """Opens `root/name/version`, the newest version unless it is named.

        Args:
          root: TFDS's data_dir, or the folder of a version itself.
          name: such as imagenet2012, imagenet2012:5.1.0 or set/config; None where root has one set only.
          split: train or val (TFDS's validation, else test).

        Raises:
          UserError: it is not there, was prepared in another format, or has no single image and label.
        """
        tfds = require("tensorflow_datasets", "tensorflow-datasets", "data.source='tfds'")
        folder = find_prepared(root, name)
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # its parsers raise all sorts
            message = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: not a data set of TFDS ({type(error).__name__}: {message})") from error
        self._image, self._label = _features(tfds, builder.info.features, folder)
        self._file_name = "file_name" if "file_name" in builder.info.features else None
        self._split = next((choice for choice in SPLITS[split] if choice in builder.info.splits), None)
        if self._split is None:
            raise UserError(f"{folder}: no split {' or '.join(SPLITS[split])} (found: {', '.join(builder.info.splits)})")
        self.classes = tuple(builder.info.features[self._label].names)
        self.class_names = imagenet.class_names(self.classes)
        if builder.info.file_format is not None and builder.info.file_format.value != "array_record":
            raise UserError(
                f"{folder}: prepared as {builder.info.file_format.value}, which needs TensorFlow; prepare it again with "
                "tfds build --file_format=array_record"
            )
        self._where = f"{builder.info.name}/{self._split}"
        try:
            self._data = builder.as_data_source(self._split, decoders={self._image: tfds.decode.SkipDecoding()})
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: split {self._split} cannot be opened ({message}); prepare it again") from error

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._where}[{index}]"
        try:
            example = self._data[index]
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{name}: cannot be read ({error}); prepare the set again") from error
        if self._file_name is not None:
            file = example[self._file_name]
            name = f"{self._where}/{file.decode() if isinstance(file, bytes) else file}"
        label = int(example[self._label])
        if not 0 <= label < len(self.classes):
            raise UserError(f"{name}: label {label} is outside 0 to {len(self.classes) - 1}; this split has no labels")
        return Record(bytes(example[self._image]), label, name)


def _features(tfds: Any, features: Any, folder: str) -> tuple[str, str]:
    """The names of the image and of the label."""
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    # Some sets have several labels (coarse_label in cifar100): the main one is called label.
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if image is None or label is None:
        raise UserError(f"{folder}: not image classification (its features: {', '.join(features)})")
    return image, label


def find_prepared(root: str, name: str | None) -> str:
    """The folder of a prepared version: holds dataset_info.json.

    Raises:
      UserError: none there, or several where one must be chosen by name.
    """
    if not storage.is_folder(root):
        raise UserError(f"data.root={root}: no such folder; give TFDS's data_dir")
    if name is None:
        return _choose(root, root)
    set_name, _, version = name.partition(":")
    folder = storage.join(root, set_name)
    if not storage.is_folder(folder):
        there = ", ".join(entry for entry in storage.scan(root)[0][:5] if entry != "downloads") or "nothing"
        raise UserError(f"data.root={root}: no data set {set_name!r} prepared there (found: {there})")
    if version:
        folder = storage.join(folder, version)
        if not storage.is_file(storage.join(folder, INFO)):
            raise UserError(f"{folder}: no prepared data set ({INFO} is missing)")
        return folder
    return _choose(root, folder)


def _choose(root: str, folder: str) -> str:
    """The newest version below a folder, at most three levels down."""
    level = [folder]
    for _ in range(4):
        found = [path for path in level if storage.is_file(storage.join(path, INFO))]
        if found:
            break
        level = [storage.join(path, entry) for path in level if storage.is_folder(path) for entry in storage.scan(path)[0]]
    parents = {path.rpartition("/")[0] for path in found}
    if not found:
        raise UserError(f"{folder}: no data set prepared by TFDS there ({INFO} is missing)")
    if len(parents) > 1:
        names = ", ".join(sorted(parent.removeprefix(root).strip("/") for parent in parents))
        raise UserError(f"{folder}: several data sets; choose one with --config.data.name (found: {names})")
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.rpartition("/")[2])])
