"""Packing: every source, every option, killed and resumed, with broken images."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from resnet_jax.data import prepare, sources
from resnet_jax.data.decode import decode
from resnet_jax.data.sources import RecordsSource
from resnet_jax.errors import UserError
from tests.data import toys
from tests.data.test_records import run

ROOT = pathlib.Path(__file__).parents[2]


def digests(folder):
    """{path: SHA-256} of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return toys.write_folder(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "tfds", "records", "cifar10"])
@pytest.mark.parametrize("named", [True, False])
def test_round_trip_of_every_source(tmp_path, kind, named):
    root, spec = tmp_path / "source", None
    if kind == "tfds":
        import zipfile

        with zipfile.ZipFile(pathlib.Path(__file__).parent / "tfds_fixture.zip") as archive:
            archive.extractall(root)
        spec = f"tfds:tiny_images@{root}" if named else str(root / "tiny_images" / "5.1.0")
    elif kind == "records":
        run(f"folder:{toys.write_folder(tmp_path / 'folder')}", root)
    elif kind == "cifar10":
        root.mkdir()
        rng = np.random.RandomState(0)
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            batch = rng.randint(0, 256, (4, 3073)).astype(np.uint8)
            batch[:, 0] %= 10
            batch.tofile(root / name)
    else:
        {"folder": toys.write_folder, "tar": toys.write_tars, "parquet": toys.write_parquet}[kind](root)
    spec = spec or (f"{kind}:{root}" if named else str(root))
    run(spec, tmp_path / "packed", "--shards=2")
    data = sources.detect.parse(spec)
    assert data.source == kind
    for split in ("train", "val"):
        want, got = sources.open_source(data, split, 0), RecordsSource(str(tmp_path / "packed"), split)
        assert got.classes == want.classes
        assert len(got) == len(want)
        for i in range(len(want)):
            assert (got[i].label, got[i].name, type(got[i].image)) == (want[i].label, want[i].name, type(want[i].image))
            np.testing.assert_array_equal(got[i].image, want[i].image)


class TestOptions:
    def test_smaller_images(self, folder, tmp_path):
        large = folder / "train" / toys.WNIDS[0] / "large.JPEG"
        large.write_bytes(toys.jpeg(toys.picture(5, 60, 100)))
        run(folder, tmp_path / "packed", "--short-side=30", "--quality=95")
        source = RecordsSource(str(tmp_path / "packed"), "train")
        names = [source[i].name.rsplit("/", 1)[1] for i in range(len(source))]
        got = decode(source[names.index("large.JPEG")].image, "x")
        assert got.shape == (30, 50, 3)
        assert np.abs(got.astype(int) - toys.picture(5, 30, 50)).mean() < 2
        assert source[1].image == toys.training()[0][2]  # 20 pixels high: as it was

    @pytest.mark.parametrize("kind", ["raw", "png"])
    def test_without_loss(self, folder, tmp_path, kind):
        run(folder, tmp_path / "packed", f"--format={kind}")
        source = RecordsSource(str(tmp_path / "packed"), "train")
        for i, (_, _, data) in enumerate(toys.training()):
            image = source[i].image
            np.testing.assert_array_equal(image if kind == "raw" else decode(image, "x"), decode(data, "x"))
        assert isinstance(source[0].image, np.ndarray) == (kind == "raw")

    def test_quality_alone_encodes_nothing_that_is_jpeg_already(self, folder, tmp_path):
        run(folder, tmp_path / "packed", "--quality=50")
        assert RecordsSource(str(tmp_path / "packed"), "train")[0].image == toys.training()[0][2]


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    args = (f"folder:{folder}", "--shards=3", "--short-side=16", "--mean-size=12")
    for workers in (0, 1, 3):
        run(args[0], tmp_path / f"packed{workers}", *args[1:], workers=workers)
    want = digests(tmp_path / "packed0")
    assert len(want) == 3 + 3 + 2
    assert digests(tmp_path / "packed1") == want
    assert digests(tmp_path / "packed3") == want


def test_killed_and_resumed_it_ends_in_the_same_bytes(tmp_path):
    """SIGKILL to the command in the middle; its workers end with it; what is finished is not made again."""
    root = tmp_path / "folder"
    image = toys.jpeg(np.random.RandomState(0).randint(0, 256, (400, 400, 3)).astype(np.uint8))
    for split, count in (("train", 60), ("val", 4)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i:03}.jpg").write_bytes(image)
    args = ["--shards=12", "--short-side=300", "--mean-size=32"]
    run(f"folder:{root}", tmp_path / "whole", *args)
    dest = tmp_path / "killed"
    command = [sys.executable, "-m", "resnet_jax.data.prepare", f"folder:{root}", str(dest), *args, "--workers=2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(dest.glob(".prepare/*.arrayrecord.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=60)  # the workers hold stderr too: this returns when they have ended
    assert workers
    finished = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.arrayrecord")}
    assert 0 < len(finished) < 20
    assert not (dest / "dataset.json").exists()
    with pytest.raises(UserError, match=r"other options .*quality: 90 there, 91 here"):
        run(f"folder:{root}", dest, *args, "--quality=91")
    noted = {path.name.removesuffix(".json") for path in dest.glob(".prepare/*.arrayrecord.json")}
    run(f"folder:{root}", dest, *args)
    assert digests(dest) == digests(tmp_path / "whole")
    for name in noted:
        assert (dest / name).stat().st_mtime_ns == finished[name]
    assert "packed before" in run(f"folder:{root}", dest, *args)


def children(pid):
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found


class TestBrokenImages:
    def test_are_named_and_refused_until_replaced_or_skipped(self, folder, tmp_path, capsys):
        path = folder / "train" / toys.WNIDS[1] / f"{toys.WNIDS[1]}_2.JPEG"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        text = folder / "val" / toys.WNIDS[2] / "notes.jpg"
        text.write_text("no image")
        dest = tmp_path / "packed"
        with pytest.raises(UserError, match=r"^2 of 20 images are broken \(listed in .*broken\.txt\): replace them"):
            run(folder, dest, "--shards=3")
        listed = (dest / "broken.txt").read_text().splitlines()
        assert [line.split(": ")[0] for line in listed] == [str(path), str(text)]
        shown = capsys.readouterr().err
        for line in listed:
            assert f"broken: {line}" in shown
        assert not (dest / "dataset.json").exists()
        run(folder, dest, "--shards=3", "--skip-broken")
        source = RecordsSource(str(dest), "train")
        assert len(source) == 11
        assert [source[i].image for i in range(11)] == [data for _, name, data in toys.training() if name != path.name]
        path.write_bytes(whole)
        text.unlink()
        run(folder, tmp_path / "mended", "--shards=3")
        assert len(RecordsSource(str(tmp_path / "mended"), "train")) == 12

    def test_replaced_ones_are_read_again(self, folder, tmp_path):
        path = folder / "train" / toys.WNIDS[1] / f"{toys.WNIDS[1]}_2.JPEG"
        whole = path.read_bytes()
        path.write_bytes(whole[:300])
        with pytest.raises(UserError, match="1 of 19 images are broken"):
            run(folder, tmp_path / "packed", "--shards=6")
        path.write_bytes(whole)
        run(folder, tmp_path / "packed", "--shards=6")
        run(folder, tmp_path / "undisturbed", "--shards=6")
        assert digests(tmp_path / "packed") == digests(tmp_path / "undisturbed")


class TestProblems:
    def test_in_one_line(self, folder, tmp_path):
        with pytest.raises(UserError, match="no data set is recognised in it; say which kind"):
            run(tmp_path, tmp_path / "packed")
        with pytest.raises(UserError, match="no kind of source is called 'webdataset'"):
            run(f"webdataset:{folder}", tmp_path / "packed")
        with pytest.raises(UserError, match="holds other files"):
            run(folder, folder)
        with pytest.raises(UserError, match="writes to local disks only"):
            run(folder, "gs://bucket/packed")
        with pytest.raises(UserError, match="--quality is of JPEG"):
            run(folder, tmp_path / "packed", "--format=raw", "--quality=3")
        (folder / "val").rename(folder / "elsewhere")
        with pytest.raises(UserError, match=r"no folder 'val' in it .*--split train"):
            run(folder, tmp_path / "packed")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="file: cannot write there"):
            run(folder, tmp_path / "file", "--split=train")

    def test_a_worker_reports_in_one_line(self, folder, tmp_path, monkeypatch):
        real = prepare.open_splits

        def vanished(data, split):
            opened = real(data, split)
            (folder / "train" / toys.WNIDS[1] / f"{toys.WNIDS[1]}_1.JPEG").unlink()
            return opened

        monkeypatch.setattr(prepare, "open_splits", vanished)
        with pytest.raises(UserError, match=r"n01443537_1\.JPEG: cannot be read"):
            run(folder, tmp_path / "packed", workers=1)

    def test_the_command_has_no_traceback(self, tmp_path):
        command = [sys.executable, "-m", "resnet_jax.data.prepare"]
        for args in ([f"folder:{tmp_path}", "x"], ["--verify", str(tmp_path)]):
            done = subprocess.run([*command, *args], cwd=ROOT, capture_output=True, text=True)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert done.stderr.startswith("error: ")

    def test_two_at_once(self, folder, tmp_path):
        import fcntl

        notes = tmp_path / "packed" / ".prepare"
        notes.mkdir(parents=True)
        with (notes / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another process is packing there"):
                run(folder, tmp_path / "packed")


def test_interrupted_by_ctrl_c(tmp_path):
    """One line and exit code 130; then the same command goes on."""
    root = tmp_path / "folder"
    image = toys.jpeg(np.random.RandomState(0).randint(0, 256, (800, 800, 3)).astype(np.uint8))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(40):
                (root / split / name / f"{i:03}.jpg").write_bytes(image)
    command = [sys.executable, "-m", "resnet_jax.data.prepare", str(root), str(tmp_path / "packed"), "--shards=8"]
    process = subprocess.Popen([*command, "--workers=1"], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob("packed/.prepare/*.arrayrecord.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert b"Traceback" not in error
    assert error.strip().endswith(b"interrupted")
