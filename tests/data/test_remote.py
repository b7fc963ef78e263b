"""Sources behind a URL: fsspec's memory://, and gs:// in an emulator."""

import fsspec
import pytest

from resnet_jax.data.sources import FolderSource, ParquetSource, RecordsSource, TarSource, storage, tar
from resnet_jax.errors import UserError
from tests.data import toys


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """memory://bucket with what is in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")

    def upload(local):
        files.put(str(local), "/bucket/data", recursive=True)
        return "memory://bucket/data"

    yield upload
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("write", "kind"),
    [(toys.write_folder, FolderSource), (toys.write_tars, TarSource), (toys.write_parquet, ParquetSource)],
)
def test_equals_the_local_source(tmp_path, memory, write, kind, split):
    local = write(tmp_path / "local")
    here, there = kind(str(local), split), kind(memory(local), split)
    assert (here.classes, here.class_names) == (there.classes, there.class_names)
    assert toys.contents(here) == toys.contents(there)
    assert there[0].name.startswith("memory://bucket/data/")


@pytest.mark.parametrize(
    ("write", "kind"),
    [(toys.write_folder, FolderSource), (toys.write_tars, TarSource), (toys.write_parquet, ParquetSource)],
)
def test_equals_the_local_source_from_a_bucket(tmp_path, bucket, monkeypatch, write, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = write(tmp_path / "local")
    fsspec.filesystem("gs").put(str(local), bucket.rstrip("/"), recursive=True)
    here, there = kind(str(local), "train"), kind(bucket, "train")
    assert here.classes == there.classes
    assert toys.contents(here) == toys.contents(there)


def test_the_index_of_a_remote_tar_is_kept_in_the_cache(tmp_path, memory, monkeypatch):
    url = memory(toys.write_tars(tmp_path / "local"))
    TarSource(url, "train")
    monkeypatch.setattr(tar, "_walk", None)
    assert len(TarSource(url, "train")) == 12


def test_problems_in_one_line(tmp_path, memory, monkeypatch):
    url = memory(toys.write_folder(tmp_path / "local"))
    with pytest.raises(UserError, match=r"data\.root=memory://bucket/nothing"):
        FolderSource("memory://bucket/nothing", "train")
    source = FolderSource(url, "train")
    fsspec.filesystem("memory").rm("/bucket/data/train/n01440764/n01440764_0.JPEG")
    with pytest.raises(UserError, match=r"memory://bucket/data/train/n01440764/n01440764_0\.JPEG: cannot be read"):
        source[0]
    with pytest.raises(UserError, match="no way to read nosuch://"):
        FolderSource("nosuch://bucket/x", "train")
    with pytest.raises(UserError, match=r"reads local files and gs:// only"):
        RecordsSource("memory://bucket/data", "train")
    monkeypatch.setattr(fsspec.core, "url_to_fs", _missing)
    with pytest.raises(UserError, match=r"reading gs:// needs gcsfs: pip install gcsfs"):
        storage.read("gs://bucket/x")


def _missing(url):
    raise ImportError("Please install gcsfs to access Google Storage")
