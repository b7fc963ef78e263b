"""Where images come from: records by index. Each kind of data set has a file here; `open_source` chooses."""

from resnet_jax.config import DataConfig
from resnet_jax.data.sources.base import Record, Source, Statistics
from resnet_jax.data.sources.folder import FolderSource
from resnet_jax.data.sources.memory import CIFAR10_CLASSES, ArraySource, SyntheticSource, cifar10, digits
from resnet_jax.data.sources.parquet import ParquetSource
from resnet_jax.data.sources.records import RecordsSource
from resnet_jax.data.sources.tar import TarSource
from resnet_jax.data.sources.tfds import TfdsSource

__all__ = [
    "CIFAR10_CLASSES",
    "ArraySource",
    "FolderSource",
    "ParquetSource",
    "Record",
    "RecordsSource",
    "Source",
    "Statistics",
    "SyntheticSource",
    "TarSource",
    "TfdsSource",
    "cifar10",
    "digits",
    "open_source",
]


def open_source(data: DataConfig, split: str, synthetic_size: int) -> Source:
    """The data set of a config.

    Args:
      data: which one.
      split: 'train', or 'val' for the images that are scored (a test set where that is what the data has).
      synthetic_size: height and width of synthetic images.

    Raises:
      UserError: the data is missing or malformed, or a library that it needs.
    """
    if data.source == "digits":
        return digits(split)
    if data.source == "synthetic":
        count = data.synthetic_images if split == "train" else data.synthetic_images // 4
        return SyntheticSource(count, data.synthetic_classes, synthetic_size, seed=1 if split == "train" else 2)
    if data.source == "tfds":
        return TfdsSource(data.root, data.name, split)
    kinds = {
        "cifar10": cifar10,
        "folder": FolderSource,
        "parquet": ParquetSource,
        "records": RecordsSource,
        "tar": TarSource,
    }
    return kinds[data.source](data.root, split)
