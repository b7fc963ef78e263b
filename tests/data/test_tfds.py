"""A set that TFDS wrote (make_tfds_fixture.py), read without TensorFlow."""

import pathlib
import pickle
import subprocess
import sys
import zipfile

import pytest

from resnet_jax.data.decode import decode
from resnet_jax.data.sources import TfdsSource
from resnet_jax.errors import UserError

FIXTURE = pathlib.Path(__file__).parent / "tfds_fixture.zip"


@pytest.fixture
def root(tmp_path):
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [None, "tiny_images", "tiny_images:5.1.0"])
def test_records(root, name):
    train, val = TfdsSource(str(root), name, "train"), TfdsSource(str(root), name, "val")
    assert train.classes == val.classes == ("n01440764", "n01443537", "n02012849")
    assert train.class_names == ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane")
    assert (len(train), len(val)) == (9, 4)
    seen = set()
    for source in (train, pickle.loads(pickle.dumps(val))):
        for i in range(len(source)):
            record = source[i]
            number = int(record.name.rsplit("/", 1)[1].removesuffix(".JPEG"))
            assert record.label == number % 3
            pixels = decode(record.image, record.name)
            assert pixels.shape == (20, 24, 3)
            assert abs(int(pixels[10, 0, 1]) - 20 * number) <= 3
            seen.add(number)
    assert seen == set(range(13))


def test_needs_no_tensorflow(root):
    code = (
        "import sys; from resnet_jax.data.sources import TfdsSource\n"
        f"source = TfdsSource({str(root)!r}, None, 'train')\n"
        "assert len(source[3].image) > 100\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'jax', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_newest_version_unless_named(root):
    text = (root / "tiny_images/5.1.0/dataset_info.json").read_text()
    newer = root / "tiny_images" / "10.0.0"
    newer.mkdir()
    for path in (root / "tiny_images" / "5.1.0").iterdir():
        (newer / path.name).write_bytes(path.read_bytes())
    shortened = text.replace('"5.1.0"', '"10.0.0"').replace('"9"', '"8"')
    (newer / "dataset_info.json").write_text(shortened)
    assert len(TfdsSource(str(root), "tiny_images", "train")) == 8
    assert len(TfdsSource(str(root), "tiny_images:5.1.0", "train")) == 9


def test_problems_in_one_line(root, monkeypatch):
    with pytest.raises(UserError, match="no such folder; give TFDS's data_dir"):
        TfdsSource(str(root / "nowhere"), None, "train")
    with pytest.raises(UserError, match=r"no data set 'imagenet2012' prepared there \(found: tiny_images\)"):
        TfdsSource(str(root), "imagenet2012", "train")
    with pytest.raises(UserError, match=r"dataset_info\.json is missing"):
        TfdsSource(str(root), "tiny_images:9.9.9", "train")
    (root / "other" / "1.0.0").mkdir(parents=True)
    (root / "other" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"choose one with --config\.data\.name \(found: other, tiny_images\)"):
        TfdsSource(str(root), None, "train")
    with pytest.raises(UserError, match=r"other/1\.0\.0: not a data set of TFDS"):
        TfdsSource(str(root), "other", "train")
    info = root / "tiny_images" / "5.1.0" / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="prepared as tfrecord, which needs TensorFlow"):
        TfdsSource(str(root), "tiny_images", "train")
    info.write_text(text)
    (info.parent / "tiny_images-train.array_record-00000-of-00001").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"tiny_images/train\[0\]: cannot be read"):
        TfdsSource(str(root), "tiny_images", "train")[0]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        TfdsSource(str(root), "tiny_images", "train")
