"""Parquet files as on the Hugging Face hub."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resnet_jax.data.sources import ParquetSource, parquet
from resnet_jax.errors import UserError
from tests.data import toys


@pytest.fixture
def root(tmp_path):
    return toys.write_parquet(tmp_path / "hub")


def test_records_in_file_order(root):
    train, val = ParquetSource(str(root), "train"), ParquetSource(str(root), "val")
    assert train.classes == val.classes == toys.WNIDS
    assert train.class_names[2] == "crane"
    assert toys.contents(train) == [(toys.WNIDS.index(w), data) for w, _, data in toys.training()]
    assert toys.contents(val) == [(toys.WNIDS.index(w), data) for w, _, data in toys.validation()]
    assert train[8].name.endswith("train-00001-of-00002.parquet[8]:n02012849_0.JPEG")
    assert len(list(train)) == 12  # ends by IndexError


def test_few_row_groups_are_held_and_threads_agree(root, monkeypatch):
    monkeypatch.setattr(parquet, "CACHED_GROUPS", 2)
    source = ParquetSource(str(root), "train")
    want = toys.contents(source)
    assert not toys.wrong_in_threads(source, want, 60)
    assert len(source._cache) == 2


def test_pickled(root):
    source = ParquetSource(str(root), "train")
    assert toys.contents(pickle.loads(pickle.dumps(source))) == toys.contents(source)


@pytest.mark.parametrize("names", [False, True])
def test_plain_columns_without_metadata(tmp_path, names):
    labels = [w if names else toys.WNIDS.index(w) for w, _, _ in toys.training()]
    table = pa.table({"img": [data for _, _, data in toys.training()], "labels": labels})
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table.slice(0, 2), tmp_path / "test.parquet")
    assert ParquetSource(str(tmp_path), "train").classes == (toys.WNIDS if names else ("0", "1", "2"))
    test = ParquetSource(str(tmp_path), "val")
    assert (len(test), test[1].label, len(test.classes)) == (2, 0, 3)


def test_problems_in_one_line(root, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ParquetSource(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=r"no train-\*\.parquet there or in data/"):
        ParquetSource(str(tmp_path), "train")
    second = root / "data" / "train-00001-of-00002.parquet"
    whole = second.read_bytes()
    second.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        ParquetSource(str(root), "train")
    damaged = bytearray(whole)
    damaged[4:600] = bytes(596)
    second.write_bytes(damaged)
    source = ParquetSource(str(root), "train")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: row group 0 is damaged"):
        source[7]
    second.unlink()
    with pytest.raises(UserError, match="1 of 2 files are there"):
        ParquetSource(str(root), "train")
    pq.write_table(pa.table({"image": [b"x"], "label": [-1]}), tmp_path / "test.parquet")
    pq.write_table(pa.table({"image": [b"x"] * 2, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="label -1 is none of the 2 classes; is this split labelled"):
        ParquetSource(str(tmp_path), "val")
    pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"no column image or .* \(found: picture, label\)"):
        ParquetSource(str(tmp_path), "train")
