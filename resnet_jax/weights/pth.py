"""Reads tensors from PyTorch's .pth files without PyTorch, and without running anything that is in them.

A .pth file is a pickle, and a pickle can call any function of any module. This reader knows the few names that tensors
are made of and refuses the rest.
"""

import collections
import io
import pathlib
import pickle
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from resnet_jax.errors import UserError

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
    """Values that tensors are views of; filled in after the pickle is read, in the old file format."""

    def __init__(self, dtype: Any, size: int):
        self.dtype, self.size, self.values = np.dtype(dtype), size, None


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= len(self.storage.values):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        step = self.storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            self.storage.values[self.offset :], self.shape, [stride * step for stride in self.strides]
        )
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers, nothing else."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        return self._storages.setdefault(str(key), _Storage(dtype, int(size)))


def _read_zip(path: pathlib.Path) -> Any:
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("it is big-endian")
        content = _Unpickler(io.BytesIO(archive.read(pickled)), storages).load()
        for key, storage in storages.items():
            storage.values = np.frombuffer(archive.read(f"{folder}data/{key}"), storage.dtype)
    return content


def _read_legacy(path: pathlib.Path) -> Any:
    storages: dict[str, _Storage] = {}
    with path.open("rb") as file:
        if _Unpickler(file, storages).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it does not begin as a PyTorch file")
        for _ in range(2):  # protocol version, sizes of C types
            _Unpickler(file, storages).load()
        content = _Unpickler(file, storages).load()
        for key in _Unpickler(file, storages).load():
            storage = storages[str(key)]
            size = int(np.frombuffer(file.read(8), np.int64)[0])
            storage.values = np.frombuffer(file.read(size * storage.dtype.itemsize), storage.dtype)
    return content


def read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name.

    Args:
      path: a file that `torch.save` wrote, in its present (zip) or its old format; a state dict, or a checkpoint that
        has one under 'state_dict' or 'model'.

    Raises:
      UserError: not such a file, or one that asks for more than tensors.
    """
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        for name in ("state_dict", "model"):
            if isinstance(content.get(name), dict):
                content = content[name]
        return {name: value.array() for name, value in content.items() if isinstance(value, _Tensor)}
    except Exception as error:  # a broken pickle can raise almost anything
        raise UserError(f"{path}: cannot be read as PyTorch weights ({error})") from error
