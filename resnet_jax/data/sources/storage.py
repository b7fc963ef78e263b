"""Files by path or URL: the local disk directly, `gs://` and other URLs through fsspec (gcsfs for Google Cloud Storage).

Paths are strings; one with `://` in it is a URL. Every failure is a `UserError` of one line.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, BinaryIO

from resnet_jax.errors import UserError

PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str) -> bool:
    """Whether it is a URL."""
    return "://" in path


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return "/".join([folder.rstrip("/") if is_remote(folder) else os.fspath(folder), *names])


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL (cached by fsspec) and the path in it."""
    import fsspec

    protocol = path.split("://")[0]
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        package = PACKAGES.get(protocol, "its fsspec package")
        raise UserError(f"{path}: reading {protocol}:// needs {package}: pip install {package} ({error})") from error
    except ValueError as error:
        raise UserError(f"{path}: no way to read {protocol}:// ({error}); use a local path or gs://") from error


@contextlib.contextmanager
def failures(path: str) -> Iterator[None]:
    """Turns what a file system raises into one line with the path."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error or type(error).__name__})") from error
    except Exception as error:  # cloud libraries have their own: no permission, no credentials, no network
        if not is_remote(path):
            raise
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {message})") from error


def scan(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, each sorted.

    Raises:
      UserError: it is missing or cannot be read.
    """
    with failures(folder):
        if not is_remote(folder):
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
        else:
            filesystem, path = _filesystem(folder)
            listing = filesystem.ls(path, detail=True)
            found = [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"] == "directory") for entry in listing]
    return sorted(name for name, folder in found if folder), sorted(name for name, folder in found if not folder)


def find(folder: str) -> list[str]:
    """All files below a remote folder, relative to it, sorted: one long listing instead of one for each subfolder."""
    with failures(folder):
        filesystem, path = _filesystem(folder)
        start = len(path.rstrip("/")) + 1
        return sorted(name[start:] for name in filesystem.find(path))


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    if not is_remote(path):
        return os.path.isfile(path)
    with failures(path):
        filesystem, inner = _filesystem(path)
        return filesystem.isfile(inner)


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    with failures(path):
        filesystem, inner = _filesystem(path)
        return filesystem.isdir(inner)


def size(path: str) -> int:
    """Bytes in a file."""
    with failures(path):
        if not is_remote(path):
            return os.stat(path).st_size
        filesystem, inner = _filesystem(path)
        return int(filesystem.info(inner)["size"])


def read(path: str) -> bytes:
    """A whole file."""
    with failures(path):
        if not is_remote(path):
            with open(path, "rb", buffering=0) as file:
                return file.read()
        filesystem, inner = _filesystem(path)
        return filesystem.cat_file(inner)


def open_binary(path: str) -> BinaryIO:
    """A file that can be read and sought."""
    with failures(path):
        if not is_remote(path):
            return open(path, "rb")
        filesystem, inner = _filesystem(path)
        return filesystem.open(inner, "rb")


class RangeReader:
    """Parts of one file by position, from any thread; a copy in another process opens the file anew."""

    def __init__(self, path: str):
        self._path, self._descriptor, self._lock = path, None, threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return RangeReader, (self._path,)

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._descriptor)
            return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`.

        Raises:
          UserError: the file cannot be read, or ends before.
        """
        with failures(self._path):
            if is_remote(self._path):
                filesystem, inner = _filesystem(self._path)
                data = filesystem.cat_file(inner, start=offset, end=offset + length)
            else:
                descriptor = self._descriptor if self._descriptor is not None else self._open()
                data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise UserError(f"{self._path}: ends before byte {offset + length}; copy it again")
        return data
