"""A folder of images: `root/<split>/<class>/<image>`, local or behind a URL."""

import difflib
import pathlib

from resnet_jax.data.sources import imagenet, storage
from resnet_jax.data.sources.base import Record
from resnet_jax.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


class FolderSource:
    """`root/<split>/<class>/<image>`, classes in alphabetical order (ImageNet's wnids: the usual class indices).

    Attributes:
      class_names: for people, where the classes are wnids.
    """

    channels = 3

    def __init__(self, root: str, split: str):
        self._root = str(root)
        splits = _split_folders(self._root, split)
        files = _images(storage.join(self._root, split))
        # Class numbers are those of the training set; a validation set may lack some classes.
        self.classes = tuple(files)
        if split != "train" and "train" in splits:
            self.classes = tuple(_class_folders(storage.join(self._root, "train")))
        check_classes(storage.join(self._root, split), list(files), self.classes)
        self.class_names = imagenet.class_names(self.classes, self._root)
        self._paths: list[str] = []
        self._labels: list[int] = []
        for name, images in files.items():
            if not images:
                folder = storage.join(self._root, split, name)
                raise UserError(f"{folder}: class folder without images; add some or remove the folder")
            self._paths += [f"{split}/{name}/{file}" for file in images]
            self._labels += [self.classes.index(name)] * len(images)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        path = storage.join(self._root, self._paths[index])
        return Record(storage.read(path), self._labels[index], path)


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return pathlib.PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def check_classes(where: str, found: list[str], known: tuple[str, ...]) -> None:
    """Refuses classes that the training set does not have.

    Raises:
      UserError: naming the class and the nearest known one.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it, or add it to 'train'"
            raise UserError(f"{where}: class folder {name!r} is not among those of 'train'; {hint}")


def _split_folders(root: str, split: str) -> list[str]:
    try:
        there, _ = storage.scan(root)
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise UserError(f"data.root={root}: {reason}; give the folder that holds 'train' and 'val'") from error
    if split not in there:
        found = ", ".join(there[:5]) or "no folders"
        raise UserError(f"data.root={root}: no folder {split!r} in it (found: {found}); expected {split}/<class>/<image>")
    return there


def _class_folders(folder: str) -> list[str]:
    classes = [name for name in storage.scan(folder)[0] if not name.startswith(".")]
    if len(classes) < 2:
        raise UserError(f"{folder}: {len(classes)} class folders; expected at least two, as <class>/<image>")
    return classes


def _images(folder: str) -> dict[str, list[str]]:
    """The image files of each class, sorted."""
    files: dict[str, list[str]] = {name: [] for name in _class_folders(folder)}
    if not storage.is_remote(folder):
        return {name: [f for f in storage.scan(storage.join(folder, name))[1] if is_image(f)] for name in files}
    for path in storage.find(folder):
        name, _, file = path.partition("/")
        if name in files and "/" not in file and is_image(file):
            files[name].append(file)
    return files
