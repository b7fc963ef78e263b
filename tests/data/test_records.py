"""The packed format: framing, damage, statistics."""

import json
import pickle

import numpy as np
import pytest

from resnet_jax import recipes
from resnet_jax.data import normalize, packing, prepare, sources
from resnet_jax.data.decode import decode
from resnet_jax.data.sources import Record, RecordsSource, records
from resnet_jax.errors import UserError
from tests.data import toys


def run(*args, workers=0):
    return prepare.prepare(prepare.parse_args([*map(str, args), f"--workers={workers}"]))


@pytest.fixture
def packed(tmp_path):
    run(f"folder:{toys.write_folder(tmp_path / 'folder')}", tmp_path / "packed", "--shards=3")
    return tmp_path / "packed"


class TestFraming:
    def test_round_trip(self):
        for record in (
            Record(b"\xff\xd8 any bytes \x00", 999, "n01440764/\u00e9t\u00e9.JPEG"),
            Record(b"", 0, ""),
            Record(np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4), 70000, "x[1]"),
        ):
            got = records.unpack(records.pack(record))
            assert (got.label, got.name, type(got.image)) == (record.label, record.name, type(record.image))
            np.testing.assert_array_equal(got.image, record.image)

    def test_the_bytes_of_version_one_stay_as_they_are(self):
        """Packed sets outlive the code that wrote them."""
        encoded = Record(b"IMG", 258, "ab")
        assert records.pack(encoded) == b"\x01\x00\x02\x00\x02\x01\x00\x00" + b"ab" + b"IMG"
        pixels = Record(np.array([[[7], [8]]], np.uint8), 1, "c")
        assert records.pack(pixels) == (
            b"\x01\x01\x01\x00\x01\x00\x00\x00" + b"\x01\x00\x00\x00\x02\x00\x00\x00\x01" + b"c" + b"\x07\x08"
        )

    @pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\x02" + bytes(20), b"\x01\x07" + bytes(20)])
    def test_something_else(self, data):
        with pytest.raises(ValueError, match="record"):
            records.unpack(data)


def test_equals_the_folder(packed, tmp_path):
    for split in ("train", "val"):
        folder = sources.FolderSource(str(tmp_path / "folder"), split)
        source = RecordsSource(str(packed), split)
        assert (source.classes, source.class_names) == (folder.classes, folder.class_names)
        assert toys.contents(source) == toys.contents(folder)
        assert [source[i].name for i in range(len(source))] == [folder[i].name for i in range(len(folder))]
        assert toys.contents(pickle.loads(pickle.dumps(source))) == toys.contents(folder)


def test_threads_agree(packed):
    source = RecordsSource(str(packed), "train")
    want = toys.contents(source)
    assert not toys.wrong_in_threads(source, want, 200)


def test_a_flipped_byte_is_noticed_when_read_and_when_verified(packed):
    assert "right size, count and SHA-256" in prepare.verify(str(packed))
    path = packed / records.shard_name("train", 1, 3)
    data = bytearray(path.read_bytes())
    position = data.index(toys.training()[5][2]) + 100
    data[position] ^= 1
    path.write_bytes(data)
    source = RecordsSource(str(packed), "train")
    assert source[4].image == toys.training()[4][2]
    with pytest.raises(UserError, match=r"packed/train\[5\]: damaged \(.*hash mismatch"):
        source[5]
    with pytest.raises(UserError, match=r"train-00001-of-00003\.arrayrecord: damaged, its SHA-256"):
        prepare.verify(str(packed))


def test_a_cut_or_missing_shard_is_noticed_at_once(packed):
    path = packed / records.shard_name("train", 2, 3)
    path.write_bytes(path.read_bytes()[:70000])
    with pytest.raises(UserError, match=r"train-00002-of-00003\.arrayrecord: 70000 bytes, expected"):
        RecordsSource(str(packed), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train-00002-of-00003\.arrayrecord: cannot be read"):
        RecordsSource(str(packed), "train")


def test_descriptions_of_something_else(packed):
    path = packed / "dataset.json"
    description = json.loads(path.read_text())
    for text, message in (
        ("{", "not the description of packed records"),
        ("[]", "not the description of packed records"),
        (json.dumps(description | {"version": 2}), "of another format or version"),
        (
            json.dumps(description | {"splits": {"train": description["splits"]["train"]}}),
            r"packed without 'val' \(has: train\)",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            RecordsSource(str(packed), "val")
    path.unlink()
    with pytest.raises(UserError, match=r"no dataset\.json in it; pack a data set with python -m resnet_jax\.data\.prepare"):
        RecordsSource(str(packed), "val")


class TestStatistics:
    def test_of_images_of_one_size_are_those_of_all_pixels(self, tmp_path):
        root = tmp_path / "folder"
        rng = np.random.RandomState(0)
        for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
            (root / split / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)
                (root / split / name / f"{i}.jpg").write_bytes(toys.jpeg(pixels))
        run(f"folder:{root}", tmp_path / "packed", "--shards=2")
        folder, source = sources.FolderSource(str(root), "train"), RecordsSource(str(tmp_path / "packed"), "train")
        images = np.stack([decode(folder[i].image, "x") for i in range(10)]).astype(np.float64)
        data = recipes.paper_cifar10("cifar_resnet20").data
        data.source, data.image_size, data.mean, data.std = "records", 16, "pixel", "channel"
        got = normalize.statistics(data, source)
        np.testing.assert_allclose(got["mean"], images.mean(0), rtol=1e-6)
        np.testing.assert_allclose(got["std"][0, 0], images.std((0, 1, 2)), rtol=1e-6)
        data.mean = "channel"
        np.testing.assert_allclose(normalize.statistics(data, source)["mean"][0, 0], images.mean((0, 1, 2)), rtol=1e-6)
        data.mean, data.image_size = "pixel", 24
        with pytest.raises(UserError, match=r"the mean image is 16x16, data\.image_size is 24; .*pack with --mean-size 24"):
            normalize.statistics(data, source)

    def test_of_other_images_are_those_of_their_centres(self):
        pixels = toys.picture(3, 20, 40)
        view = packing.centre(pixels, 10)
        np.testing.assert_array_equal(view, packing.resized(pixels, 10, 2)[:, 5:15])
        np.testing.assert_array_equal(packing.centre(pixels[:, :20], 20), pixels[:, :20])
        sums = packing.PixelSums(10, 3)
        for _ in range(2):
            sums.add(view)
        mean, channel_mean, std = sums.statistics()
        np.testing.assert_array_equal(mean, view)
        np.testing.assert_allclose(channel_mean, view.mean((0, 1)), rtol=1e-12)
        np.testing.assert_allclose(std, view.std((0, 1), dtype=np.float64), rtol=1e-12)

    def test_a_set_packed_without_training_images_has_none(self, tmp_path):
        run(f"folder:{toys.write_folder(tmp_path / 'folder')}", tmp_path / "packed", "--split=val")
        data = recipes.paper_cifar10("cifar_resnet20").data
        with pytest.raises(UserError, match=r"packed with resnet_jax\.data\.prepare"):
            normalize.statistics(data, RecordsSource(str(tmp_path / "packed"), "val"))
