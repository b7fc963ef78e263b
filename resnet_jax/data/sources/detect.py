"""Which kind of data set a path holds."""

from resnet_jax.config import DataConfig
from resnet_jax.data.sources import records, storage, tar, tfds
from resnet_jax.errors import UserError

KINDS = ("folder", "tar", "parquet", "cifar10", "records", "tfds")


def parse(spec: str) -> DataConfig:
    """`KIND:PATH`, `tfds:NAME@PATH` or a path alone, as the data section of a config.

    Raises:
      UserError: nothing that is known is there.
    """
    kind, colon, path = spec.partition(":")
    if not colon or kind not in KINDS:
        if colon and "/" not in kind and not path.startswith("//"):
            raise UserError(f"{spec}: no kind of source is called {kind!r}; choose one of: {', '.join(KINDS)}")
        kind, path = detect(spec), spec
    if not path:
        raise UserError(f"{spec}: give a path, as {kind}:PATH")
    name = None
    if kind == "tfds" and "@" in path:
        name, _, path = path.partition("@")
    if kind == "tar" and path.endswith(".tar"):
        path = path.rpartition("/")[0] or "."
    return DataConfig(source=kind, root=path, name=name)


def detect(path: str) -> str:
    """The kind of what is there.

    Raises:
      UserError: none that is known.
    """
    if path.endswith(".tar"):
        return "tar"
    folders, files = storage.scan(path)
    inner = storage.scan(storage.join(path, "data"))[1] if "data" in folders else []
    if records.DESCRIPTION in files:
        return "records"
    if tfds.INFO in files:
        return "tfds"
    if any(name in files for names in tar.NAMES.values() for name in names):
        return "tar"
    if any(name.endswith(".parquet") for name in files + inner):
        return "parquet"
    if any(name.startswith("cifar-10-batches") for name in folders) or any(f.startswith("data_batch_1") for f in files):
        return "cifar10"
    if "train" in folders or "val" in folders:
        return "folder"
    raise UserError(f"{path}: no data set is recognised in it; say which kind it is, as KIND:PATH ({', '.join(KINDS)})")
