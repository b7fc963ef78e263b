"""CIFAR files, image folders, digits; and what they say of broken ones."""

import io
import pickle

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from resnet_jax.config import DataConfig
from resnet_jax.data import sources
from resnet_jax.data.decode import decode
from resnet_jax.errors import UserError


def pixels(height=12, width=16, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_rgb():
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    return np.stack([np.tile(ramp, (24, 1)), np.tile(ramp[::-1], (24, 1)), np.full((24, 32), 90, np.uint8)], -1)


class TestDecode:
    def test_jpeg_equals_pillow(self):
        data = encoded(Image.fromarray(smooth_rgb()), quality=95)
        want = np.asarray(Image.open(io.BytesIO(data)))
        got = decode(data, "x")
        assert got.dtype == np.uint8
        assert got.shape == (24, 32, 3)
        assert np.abs(got.astype(int) - want).max() <= 1

    def test_progressive(self):
        data = encoded(Image.fromarray(smooth_rgb()), quality=95, progressive=True)
        assert np.abs(decode(data, "x").astype(int) - smooth_rgb()).mean() < 3

    def test_greyscale_becomes_three_equal_channels(self):
        data = encoded(Image.fromarray(smooth_rgb()[..., 0]), quality=95)
        got = decode(data, "x")
        assert got.shape == (24, 32, 3)
        np.testing.assert_array_equal(got[..., 0], got[..., 2])
        assert np.abs(got[..., 0].astype(int) - smooth_rgb()[..., 0]).mean() < 3

    def test_cmyk_becomes_rgb(self):
        data = encoded(Image.fromarray(smooth_rgb()).convert("CMYK"), quality=95)
        assert np.abs(decode(data, "x").astype(int) - smooth_rgb()).mean() < 3

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
    def test_png_whatever_its_name(self, mode):
        image = Image.fromarray(smooth_rgb()).convert(mode)
        np.testing.assert_array_equal(decode(encoded(image, "PNG"), "x.JPEG"), np.asarray(image.convert("RGB")))

    def test_sixteen_bits_keep_their_range(self):
        ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
        got = decode(encoded(Image.fromarray(ramp), "PNG"), "x.png")
        assert got.shape == (8, 64, 3)
        np.testing.assert_allclose(got[0, :, 1], np.linspace(0, 255, 64), atol=1)

    def test_floating_point_pixels_are_refused(self):
        with pytest.raises(UserError, match="floating-point pixels"):
            decode(encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "x.tif")

    def test_exif_rotation_is_ignored(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        for kind in ("JPEG", "PNG"):
            assert decode(encoded(Image.fromarray(smooth_rgb()), kind, exif=exif), "x").shape == (24, 32, 3)

    def test_flaws_that_pillow_overlooks(self):
        """Bytes of no use between two segments: libjpeg warns and goes on."""
        data = encoded(Image.fromarray(smooth_rgb()), quality=95)
        place = data.index(b"\xff\xdb")
        flawed = data[:place] + b"\x12\x34" + data[place:]
        with pytest.raises(ValueError, match="extraneous"):
            simplejpeg.decode_jpeg(flawed)
        assert np.abs(decode(flawed, "x").astype(int) - decode(data, "x")).max() <= 1

    def test_truncated_progressive_jpeg(self):
        data = encoded(Image.fromarray(pixels(64, 64)), progressive=True)
        with pytest.raises(UserError, match="broken or truncated"):
            decode(data[: len(data) // 2], "x.jpg")

    def test_truncated_jpeg(self):
        data = encoded(Image.fromarray(pixels(64, 64)))
        with pytest.raises(UserError, match=r"^dog/1\.jpg: broken or truncated image .*remove it or replace it$"):
            decode(data[: len(data) // 2], "dog/1.jpg")

    def test_truncated_cmyk_jpeg(self):
        data = encoded(Image.fromarray(pixels(64, 64)).convert("CMYK"))
        with pytest.raises(UserError, match="broken or truncated"):
            decode(data[: len(data) // 2], "x.jpg")

    def test_truncated_png(self):
        data = encoded(Image.fromarray(pixels(64, 64)), "PNG")
        with pytest.raises(UserError, match="broken or truncated"):
            decode(data[: len(data) // 2], "x.png")

    @pytest.mark.parametrize("data", [b"just text", b"", b"\xff\xd8\xff"])
    def test_not_an_image(self, data):
        with pytest.raises(UserError, match=r"^notes\.jpg: (not an image file|broken or truncated image)"):
            decode(data, "notes.jpg")


class TestCifar:
    def batches(self):
        rng = np.random.RandomState(0)
        return [(rng.randint(0, 256, (5, 3072)).astype(np.uint8), rng.randint(0, 10, 5)) for _ in range(6)]

    def write(self, folder, layout):
        folder.mkdir()
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        for name, (data, labels) in zip(names, self.batches(), strict=True):
            if layout == "bin":
                records = np.concatenate([labels[:, None].astype(np.uint8), data], 1)
                records.tofile(folder / f"{name}.bin")
            else:
                with (folder / name).open("wb") as file:
                    pickle.dump({b"data": data, b"labels": labels.tolist()}, file, protocol=2)

    @pytest.mark.parametrize("layout", ["bin", "py"])
    @pytest.mark.parametrize("inside", [True, False])
    def test_both_layouts(self, tmp_path, layout, inside):
        folder = tmp_path / f"cifar-10-batches-{layout}"
        self.write(folder, layout)
        root = str(tmp_path if inside else folder)
        train, test = sources.cifar10(root, "train"), sources.cifar10(root, "val")
        data, labels = self.batches()[2]
        assert (len(train), len(test)) == (25, 5)
        record = train[11]  # the second of the third file
        assert record.label == labels[1]
        # The file holds a red, a green and a blue plane, each row by row.
        np.testing.assert_array_equal(record.image[3, 7], [data[1, plane * 1024 + 3 * 32 + 7] for plane in range(3)])
        np.testing.assert_array_equal(test.labels, self.batches()[5][1])

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path):
        folder = tmp_path / "cifar-10-batches-py"
        self.write(folder, "py")
        marker = tmp_path / "ran"

        class Attack:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}))
        with pytest.raises(UserError, match=r"data_batch_3: not a CIFAR-10 batch \(it asks for .*open"):
            sources.cifar10(str(tmp_path), "train")
        assert not marker.exists()

    def test_damaged_and_missing_files(self, tmp_path):
        self.write(tmp_path / "bin", "bin")
        path = tmp_path / "bin" / "data_batch_2.bin"
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(UserError, match=r"data_batch_2\.bin: .* not whole records of 3073"):
            sources.cifar10(str(tmp_path / "bin"), "train")
        path.unlink()
        with pytest.raises(UserError, match=r"data_batch_2\.bin is missing"):
            sources.cifar10(str(tmp_path / "bin"), "train")
        self.write(tmp_path / "py", "py")
        (tmp_path / "py" / "test_batch").write_bytes(b"\x80\x02garbage")
        with pytest.raises(UserError, match="test_batch: not a CIFAR-10 batch"):
            sources.cifar10(str(tmp_path / "py"), "val")
        with pytest.raises(UserError, match="no CIFAR-10 in it"):
            sources.cifar10(str(tmp_path), "train")
        with pytest.raises(UserError, match="no such folder"):
            sources.cifar10(str(tmp_path / "nowhere"), "train")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 16), (label * 100, i, 0)).save(tmp_path / split / name / f"{i}.JPEG")
    return tmp_path


class TestFolder:
    def test_records_in_order(self, folder):
        (folder / "train" / "cat" / "README.txt").write_text("not an image, and not named like one")
        source = sources.FolderSource(str(folder), "train")
        assert source.classes == ("cat", "dog", "owl")
        assert [source[i].label for i in range(len(source))] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert source[4].name.endswith("train/dog/1.JPEG")
        assert abs(int(decode(source[8].image, "x")[0, 0, 0]) - 200) <= 2

    def test_class_numbers_are_those_of_training(self, folder):
        for path in (folder / "val" / "cat").iterdir():
            path.unlink()
        (folder / "val" / "cat").rmdir()
        source = sources.FolderSource(str(folder), "val")
        assert [source[i].label for i in range(len(source))] == [1, 1, 2, 2]

    def test_problems_in_one_line(self, folder):
        (folder / "val" / "dgo").mkdir()
        with pytest.raises(UserError, match="class folder 'dgo' is not among those of 'train'; did you mean 'dog'"):
            sources.FolderSource(str(folder), "val")
        (folder / "train" / "ant").mkdir()
        with pytest.raises(UserError, match="train/ant: class folder without images"):
            sources.FolderSource(str(folder), "train")
        with pytest.raises(UserError, match=r"no folder 'test' in it \(found: train, val\)"):
            sources.FolderSource(str(folder), "test")
        with pytest.raises(UserError, match="No such file or directory; give the folder that holds 'train' and 'val'"):
            sources.FolderSource(str(folder / "nowhere"), "train")
        with pytest.raises(UserError, match="0 class folders"):
            sources.FolderSource(str(folder / "train"), "cat")

    def test_a_file_that_vanished(self, folder):
        source = sources.FolderSource(str(folder), "train")
        (folder / "train" / "dog" / "1.JPEG").unlink()
        with pytest.raises(UserError, match=r"dog/1\.JPEG: cannot be read"):
            source[4]


def test_digits_are_split_once_and_for_all():
    train, test = sources.digits("train"), sources.digits("val")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    every = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in every for image in test.images) == 0
    assert np.bincount(test.labels).min() > 25


def test_synthetic_needs_no_data_and_is_repeatable():
    data = DataConfig(source="synthetic", synthetic_images=40, synthetic_classes=4)
    train, test = sources.open_source(data, "train", 32), sources.open_source(data, "val", 32)
    assert (len(train), len(test)) == (40, 10)
    np.testing.assert_array_equal(train[5].image, sources.open_source(data, "train", 32)[5].image)
    assert not np.array_equal(train[5].image, test[5].image)
    assert train[5].image.shape == (32, 32, 3)
    means = [np.mean([train[i].image.mean((0, 1)) for i in range(c, 40, 4)], 0) for c in range(4)]
    assert all(np.abs(a - b).max() > 5 for i, a in enumerate(means) for b in means[:i])
