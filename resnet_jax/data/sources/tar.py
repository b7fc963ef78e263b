"""ImageNet's official tars (or any tar of class folders), read in place: an index of offsets instead of a million files.

`ILSVRC2012_img_train.tar` holds one tar for each class, `ILSVRC2012_img_val.tar` the images alone; their labels come
from the devkit (`imagenet`). Any `train.tar` and `val.tar` with `<class>/<image>` in them are read too.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np

from resnet_jax.data.sources import imagenet, storage
from resnet_jax.data.sources.base import Record, check_index
from resnet_jax.data.sources.folder import check_classes, is_image
from resnet_jax.errors import UserError

NAMES = {"train": ("ILSVRC2012_img_train.tar", "train.tar"), "val": ("ILSVRC2012_img_val.tar", "val.tar")}
INDEX_VERSION = 1

Member = tuple[int, int, str]  # offset, bytes, name


class TarSource:
    """The images of one split in a tar, in the order of the same images in class folders.

    Attributes:
      classes: names of the class tars or folders, alphabetically (ImageNet's wnids).
      class_names: for people.
    """

    channels = 3

    def __init__(self, root: str, split: str):
        self._path = _tar_path(root, split)
        index = load_index(self._path)
        names = _text(index["names"])
        groups = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
        if not names:
            raise UserError(f"{self._path}: no images in it")
        if not all(groups):
            groups = _validation_groups(root, self._path, names)
        self.classes = tuple(sorted(set(groups)))
        if split != "train":
            self.classes = _training_classes(root) or self.classes
            check_classes(self._path, sorted(set(groups)), self.classes)
        if len(self.classes) < 2:
            raise UserError(f"{self._path}: {len(self.classes)} class; expected at least two, as <class>/<image>")
        self.class_names = imagenet.class_names(self.classes, root)
        number = {name: i for i, name in enumerate(self.classes)}
        labels = np.array([number[name] for name in groups], np.int32)
        files = np.array([name.rpartition("/")[2] for name in names])
        order = np.lexsort((files, labels))
        self._labels, self._names = labels[order], index["names"][order]
        self._offsets, self._sizes = index["offsets"][order], index["sizes"][order]
        self._reader = storage.RangeReader(self._path)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self))
        data = self._reader.read(int(self._offsets[index]), int(self._sizes[index]))
        return Record(data, int(self._labels[index]), f"{self._path}:{_text(self._names[index : index + 1])[0]}")


def _text(names: np.ndarray) -> list[str]:
    """Names from the index, which has them as bytes: a quarter of NumPy's strings."""
    return [name.decode("utf-8", "surrogateescape") for name in names.tolist()]


def _tar_path(root: str, split: str) -> str:
    if not storage.is_folder(root):
        raise UserError(f"data.root={root}: no such folder; give the one that holds {NAMES['train'][0]}")
    for name in NAMES[split]:
        if storage.is_file(storage.join(root, name)):
            return storage.join(root, name)
    raise UserError(f"data.root={root}: neither {' nor '.join(NAMES[split])} in it")


def _training_classes(root: str) -> tuple[str, ...]:
    """Classes of the training tar, from its outer headers where it holds class tars; () without one."""
    path = next((storage.join(root, name) for name in NAMES["train"] if storage.is_file(storage.join(root, name))), None)
    if path is None:
        return ()
    with storage.open_binary(path) as file:
        first = next(_members(file, path), (0, 0, ""))[2]
        if first.endswith(".tar"):
            return tuple(sorted(pathlib.PurePath(name).stem for _, _, name in _members(file, path)))
    return tuple(sorted({name.split("/")[-2] for name in _text(load_index(path)["names"]) if "/" in name}))


def _validation_groups(root: str, path: str, names: list[str]) -> list[str]:
    """The wnids of images named ILSVRC2012_val_00000001.JPEG and so on."""
    wnids, origin = imagenet.validation_wnids(root)
    if len(wnids) != len(names):
        raise UserError(f"{path}: {len(names)} images, but {origin} has {len(wnids)} labels; copy both again")
    groups = []
    for name in names:
        number = re.search(r"_val_(\d{8})\.", name)
        if number is None or not 1 <= int(number[1]) <= len(wnids):
            raise UserError(f"{path}: {name!r} is in no class folder and is not named ILSVRC2012_val_00000001.JPEG")
        groups.append(wnids[int(number[1]) - 1])
    return groups


class _Window(io.RawIOBase):
    """Part of a file as a file: a tar in a tar."""

    def __init__(self, file: io.BufferedIOBase, offset: int, length: int):
        self._file, self._start, self._length, self._position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(self._length - self._position, 0)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if count < 0 else min(count, left))
        self._position += len(data)
        return data


def _members(file: io.BufferedIOBase, where: str, start: int = 0, length: int | None = None) -> Iterator[Member]:
    """The regular files of a tar, or of a tar inside a file, from their headers alone."""
    if length is None:
        length = file.seek(0, os.SEEK_END)
    try:
        with tarfile.open(fileobj=_Window(file, start, length), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # or a million of them stay in memory
                if member.offset_data + member.size > length:
                    raise UserError(f"{where}: ends inside {member.name}; copy or download it again")
                if member.isfile():
                    yield start + member.offset_data, member.size, member.name
    except tarfile.TarError as error:
        raise UserError(f"{where}: not a whole tar ({error}); copy or download it again") from error


def _walk(path: str) -> list[Member]:
    """All images of a tar, those of class tars as <class>/<image>."""
    found: list[Member] = []
    with storage.failures(path), storage.open_binary(path) as file:
        for offset, size, name in _members(file, path):
            if name.endswith(".tar"):
                group = pathlib.PurePath(name).stem
                inner = _members(file, f"{path}:{name}", offset, size)
                found += [(o, s, f"{group}/{n.rpartition('/')[2]}") for o, s, n in inner if is_image(n)]
            elif is_image(name) and not name.rpartition("/")[2].startswith("."):
                found.append((offset, size, name.removeprefix("./")))
    return found


def _identity(path: str) -> str:
    """Changes when the file does."""
    modified = "" if storage.is_remote(path) else str(os.stat(path).st_mtime_ns)
    return f"{INDEX_VERSION} {storage.size(path)} {modified}"


def index_paths(path: str) -> list[pathlib.Path]:
    """Where the index of a tar may be kept: beside it, else in the user's cache folder."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "resnet_jax"
    absolute = path if storage.is_remote(path) else os.path.abspath(path)
    kept = cache / f"{hashlib.sha256(absolute.encode()).hexdigest()[:16]}.index.npz"
    return [kept] if storage.is_remote(path) else [pathlib.Path(f"{path}.index.npz"), kept]


def load_index(path: str) -> dict[str, np.ndarray]:
    """The index of a tar: made by reading its headers once, then kept (`index_paths`) until the tar changes.

    A tar behind a URL is read through once in full for that.

    Returns:
      `offsets` int64 `[images]`, `sizes` int64 `[images]`, `names` UTF-8 bytes `[images]`, in the order of the tar.
    """
    identity = _identity(path)
    for place in index_paths(path):
        try:
            with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["identity"]) == identity:
                    return {name: stored[name] for name in ("offsets", "sizes", "names")}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            continue  # none there, or one that was damaged: it is made again
    members = _walk(path)
    index = {
        "offsets": np.array([member[0] for member in members], np.int64),
        "sizes": np.array([member[1] for member in members], np.int64),
        "names": np.array([member[2].encode("utf-8", "surrogateescape") for member in members], np.bytes_),
    }
    for place in index_paths(path):
        temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez_compressed(file, identity=np.array(identity), **index)
            temporary.replace(place)
            break
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return index
