"""The official ILSVRC tars in miniature: the same records as the same images in folders."""

import os
import pickle

import numpy as np
import pytest

from resnet_jax.data.sources import FolderSource, TarSource, tar
from resnet_jax.errors import UserError
from tests.data import toys


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet_jax"


@pytest.fixture
def root(tmp_path):
    return toys.write_tars(tmp_path / "tars")


@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_the_unpacked_folders(root, tmp_path, split):
    folder = FolderSource(str(toys.write_folder(tmp_path / "folder")), split)
    source = TarSource(str(root), split)
    assert source.classes == folder.classes == toys.WNIDS
    assert toys.contents(source) == toys.contents(folder)
    for i in range(len(folder)):
        assert source[i].name.split("/")[-1].split(":")[-1] == folder[i].name.rsplit("/", 1)[1]


def test_names_for_people_come_from_the_devkit(root):
    assert TarSource(str(root), "train").class_names[0] == "tench, from the devkit"
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert TarSource(str(root), "train").class_names[0] == "tench, Tinca tinca"
    (root / "LOC_synset_mapping.txt").write_text(f"{toys.WNIDS[0]} tench, by Kaggle\n")
    assert TarSource(str(root), "train").class_names[:2] == ("tench, by Kaggle", "goldfish, Carassius auratus")


class TestValidationLabels:
    def write_synset_labels(root):
        (root / "imagenet_2012_validation_synset_labels.txt").write_text(
            "".join(f"{wnid}\n" for wnid, _, _ in toys.validation())
        )

    def write_kaggle(root):
        rows = [f"{name[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for wnid, name, _ in reversed(toys.validation())]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))

    def write_unpacked_devkit(root):
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        (data / "meta.mat").write_bytes(toys.meta_mat())
        (data / "ILSVRC2012_validation_ground_truth.txt").write_bytes(toys.ground_truth())

    @pytest.mark.parametrize("write", [write_synset_labels, write_kaggle, write_unpacked_devkit])
    def test_every_form(self, root, write):
        want = toys.contents(TarSource(str(root), "val"))
        (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
        write(root)
        assert toys.contents(TarSource(str(root), "val")) == want

    def test_problems(self, root):
        archive = root / "ILSVRC2012_devkit_t12.tar.gz"
        archive.write_bytes(archive.read_bytes()[:100])
        with pytest.raises(UserError, match="not a readable devkit"):
            TarSource(str(root), "val")
        archive.unlink()
        with pytest.raises(UserError, match="no labels of the validation images; put ILSVRC2012_devkit_t12"):
            TarSource(str(root), "val")
        truth = root / "ILSVRC2012_validation_ground_truth.txt"
        truth.write_bytes(toys.ground_truth())
        with pytest.raises(UserError, match=r"need the devkit's meta\.mat"):
            TarSource(str(root), "val")
        (root / "meta.mat").write_bytes(b"no matlab")
        with pytest.raises(UserError, match=r"not the devkit's meta\.mat"):
            TarSource(str(root), "val")
        (root / "meta.mat").write_bytes(toys.meta_mat())
        truth.write_bytes(toys.ground_truth() + b"1\n")
        with pytest.raises(UserError, match=r"7 images, but .* has 8 labels"):
            TarSource(str(root), "val")
        truth.write_bytes(toys.ground_truth()[:-2] + b"4\n")
        with pytest.raises(UserError, match="4 is not an ILSVRC2012_ID"):
            TarSource(str(root), "val")


class TestIndex:
    def test_is_made_once_beside_the_tar_and_again_when_it_changes(self, root, monkeypatch):
        want = toys.contents(TarSource(str(root), "train"))
        assert (root / "ILSVRC2012_img_train.tar.index.npz").is_file()
        walks = []
        walk = tar._walk
        monkeypatch.setattr(tar, "_walk", lambda path: walks.append(path) or walk(path))
        assert toys.contents(TarSource(str(root), "train")) == want
        assert not walks
        os.utime(root / "ILSVRC2012_img_train.tar", (1, 1))
        assert toys.contents(TarSource(str(root), "train")) == want
        assert len(walks) == 1

    def test_a_damaged_one_is_made_again(self, root):
        want = toys.contents(TarSource(str(root), "train"))
        index = root / "ILSVRC2012_img_train.tar.index.npz"
        index.write_bytes(index.read_bytes()[:200])
        assert toys.contents(TarSource(str(root), "train")) == want

    def test_in_the_cache_folder_where_the_tar_cannot_have_one(self, root, cache, monkeypatch):
        beside = tar.index_paths(str(root / "ILSVRC2012_img_train.tar"))[0]
        beside.with_name(f"{beside.name}.{os.getpid()}.tmp").mkdir()  # also stops root, who may write anywhere
        TarSource(str(root), "train")
        assert not beside.exists()
        assert len(list(cache.glob("*.index.npz"))) == 1
        monkeypatch.setattr(tar, "_walk", None)
        assert len(TarSource(str(root), "train")) == 12


def test_a_copy_in_another_process_opens_the_file_anew(root):
    source = TarSource(str(root), "train")
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy._reader._descriptor is None
    assert toys.contents(copy) == toys.contents(source)


def test_any_tar_with_class_folders(tmp_path):
    for split, images in (("train", toys.training()), ("val", toys.validation())):
        files = [(f"./{split}/{wnid}/{name}", data) for wnid, name, data in images]
        (tmp_path / f"{split}.tar").write_bytes(toys.tar_of([*files, ("README", b"x")]))
    assert [record for record, _ in toys.contents(TarSource(str(tmp_path), "train"))] == list(np.repeat([0, 1, 2], 4))
    assert len(TarSource(str(tmp_path), "val")) == 7


def test_problems_in_one_line(root, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; give the one that holds ILSVRC2012_img_train\.tar"):
        TarSource(str(tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither ILSVRC2012_img_val\.tar nor val\.tar in it"):
        TarSource(str(tmp_path / "empty"), "val")
    path = root / "ILSVRC2012_img_train.tar"
    source = TarSource(str(root), "train")
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) // 2 // 512 * 512, 9000, 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="copy or download it again"):
            TarSource(str(root), "train")
    with pytest.raises(UserError, match=r"train\.tar: ends before byte"):
        source[0]
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(UserError, match="not a whole tar"):
        TarSource(str(root), "train")
