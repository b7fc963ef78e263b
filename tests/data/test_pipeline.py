"""Global batch k is a pure function of (seed, k): not of the start, the hosts, the threads or the workers."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest

from resnet_jax import recipes
from resnet_jax.data import augment, pipeline, sources
from resnet_jax.data.colour import Colour
from resnet_jax.errors import UserError
from tests.data import toys

COUNT, BATCH = 50, 16  # neither divides the other


def source():
    images = np.random.RandomState(0).randint(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)
    return sources.ArraySource(images, np.arange(COUNT), tuple(map(str, range(COUNT))), "x")


def batches(rows=range(BATCH), seed=7, steps=10):
    return pipeline.TrainBatches(source(), augment.PadCrop(8, 2, flip=True), BATCH, rows, seed, steps)


def data(**fields):
    config = recipes.paper_cifar10("cifar_resnet20").data
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def digest(stream):
    result = hashlib.sha256()
    for batch in stream:
        for name in sorted(batch):
            result.update(np.ascontiguousarray(batch[name]).tobytes())
    return result.hexdigest()


def test_each_epoch_is_a_permutation_of_its_own():
    order = np.concatenate([batches()[k]["label"] for k in range(10)])  # 160 positions: three epochs and a bit
    epochs = [order[i * COUNT : (i + 1) * COUNT] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.arange(COUNT))


def test_an_image_is_augmented_anew_each_epoch():
    stacked = [batches()[k] for k in range(10)]
    labels = np.concatenate([b["label"] for b in stacked])
    windows = np.concatenate([b["window"] for b in stacked])
    first, second = (np.flatnonzero(labels == label)[:2] for label in (3, 17))
    assert not np.array_equal(windows[first[0]], windows[first[1]]) or not np.array_equal(
        windows[second[0]], windows[second[1]]
    )
    assert len(np.unique(windows, axis=0)) > 40


def test_hosts_get_the_rows_of_the_one_global_batch():
    for step in (0, 3, 9):
        whole = batches()[step]
        for split in ([range(8), range(8, 16)], [range(0, 16, 2), range(1, 16, 2)], [[5], [9, 2]]):
            for rows in split:
                part = batches(rows=rows)[step]
                for name, value in whole.items():
                    np.testing.assert_array_equal(part[name], value[list(rows)])


def test_the_seed_matters():
    assert digest([batches(seed=1)[0]]) != digest([batches(seed=2)[0]])


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 4), (1, 1), (2, 2)])
@pytest.mark.parametrize("start", [0, 6])
def test_workers_threads_and_start_change_nothing(workers, threads, start):
    want = digest(batches()[k] for k in range(start, 10))
    with pipeline.iterate(batches(), start, data(workers=workers, threads=threads)) as stream:
        assert digest(stream) == want


def test_three_epochs_are_the_same_for_any_workers_and_processes():
    """JPEGs of several sizes, 53 to an epoch, batches of 12: one process loads all rows, or several their own."""
    steps, rng = -(-3 * 53 // 12), np.random.default_rng(0)
    photos = [toys.jpeg(rng.integers(0, 256, (rng.integers(16, 40), 24, 3), np.uint8)) for _ in range(53)]
    transform = augment.Augment(augment.InceptionCrop(12), colour=Colour(0.4, 0.1), erasing=0.3)

    def stream(rows, workers):
        made = pipeline.TrainBatches(Photos(photos), transform, 12, rows, 7, steps)
        with pipeline.iterate(made, 0, data(source="folder", workers=workers, threads=2)) as iterator:
            return list(iterator)

    whole = stream(range(12), 0)
    assert len({digest([batch]) for batch in whole}) == steps == 14
    for workers in (1, 2, 8):
        assert digest(stream(range(12), workers)) == digest(whole)
    for processes in (2, 3):
        parts = [stream(range(12)[host * 12 // processes :][: 12 // processes], 0) for host in range(processes)]
        joined = [{name: np.concatenate([part[k][name] for part in parts]) for name in whole[k]} for k in range(steps)]
        assert digest(joined) == digest(whole)
    print("SHA-256 of the stream:", digest(whole))


class Photos:
    """Encoded images, one class each."""

    channels = 3

    def __init__(self, photos):
        self._photos, self.classes = photos, tuple(map(str, range(len(photos))))

    def __len__(self):
        return len(self._photos)

    def __getitem__(self, index):
        return sources.Record(self._photos[index], index, f"{index}.png")


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with pipeline.iterate(batches(steps=10**6), 0, data(workers=2)) as stream:
        next(stream)
        (victim, *_) = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        victim.kill()
        began = time.monotonic()
        with pytest.raises(UserError, match="a data worker was killed"):
            list(itertools.islice(stream, 100))  # what is loaded already still comes
        assert time.monotonic() - began < 30


def test_a_worker_whose_parent_was_killed_while_it_started_ends(monkeypatch):
    class Gone:
        pid = 2**22 + 1  # nobody's number

    ended = threading.Event()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: Gone)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    handler = signal.getsignal(signal.SIGINT)
    try:
        pipeline._worker_init(0, 1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.wait(5)


def test_evaluation_has_every_image_once_and_masks_the_rest():
    for batch_size in (7, 16, 50, 64):
        stream = pipeline.EvalBatches(source(), augment.CentreCrop(8, None), batch_size, range(batch_size))
        with pipeline.iterate(stream, 0, data()) as iterator:
            got = list(iterator)
        assert len(got) == len(stream) == -(-COUNT // batch_size)
        mask = np.concatenate([batch["mask"] for batch in got])
        labels = np.concatenate([batch["label"] for batch in got])
        images = np.concatenate([batch["image"] for batch in got])
        np.testing.assert_array_equal(labels[mask], np.arange(COUNT))
        np.testing.assert_array_equal(images[mask], source().images)
        assert len(mask) == len(got) * batch_size


class Faulty(sources.ArraySource):
    def __getitem__(self, index):
        record = super().__getitem__(index)
        return sources.Record(b"no image", record.label, f"folder/{index}.jpg")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(workers):
    from resnet_jax.errors import user_error_in

    base = source()
    stream = pipeline.TrainBatches(
        Faulty(base.images, base.labels, base.classes, "x"), augment.CentreCrop(8, None), 4, range(4), 0, 5
    )
    with pipeline.iterate(stream, 0, data(workers=workers)) as iterator, pytest.raises(Exception, match=r"\.jpg") as caught:
        next(iterator)
    assert isinstance(user_error_in(caught.value), UserError)
    assert ".jpg: not an image file" in str(user_error_in(caught.value))


def test_an_image_of_another_size_is_named():
    stream = pipeline.EvalBatches(source(), augment.CentreCrop(9, None), 4, range(4))
    with pytest.raises(UserError, match=r"^x\[0\]: an image is 8x8 but data\.image_size is 9"):
        stream[0]


def crop():
    return augment.PadCrop(8, 2, flip=True)


def test_repeats_show_the_image_again_and_draw_anew():
    once = np.concatenate([batches()[k]["label"] for k in range(10)])
    stream = pipeline.TrainBatches(source(), crop(), BATCH, range(BATCH), 7, 10, repeats=3)
    labels = np.concatenate([stream[k]["label"] for k in range(10)])
    np.testing.assert_array_equal(labels, np.repeat(once, 3)[:160])
    windows = np.concatenate([stream[k]["window"] for k in range(10)])
    np.testing.assert_array_equal(windows, np.concatenate([batches()[k]["window"] for k in range(10)]))
    for rows in ([0, 1, 2], [5], range(8, 16)):  # hosts
        part = pipeline.TrainBatches(source(), crop(), BATCH, rows, 7, 10, repeats=3)[4]
        np.testing.assert_array_equal(part["image"], stream[4]["image"][list(rows)])


class SomeBroken(sources.ArraySource):
    """Some records hold bytes that are no image."""

    broken = (3, 17, 18)

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if index in self.broken:
            return sources.Record(b"no image", record.label, f"folder/{index}.jpg")
        return record


def some_broken(broken=SomeBroken.broken):
    base = source()
    made = SomeBroken(base.images, base.labels, base.classes, "x")
    made.broken = tuple(broken)
    return made


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 3), (2, 1)])
def test_broken_images_are_replaced_by_the_next(workers, threads):
    whole = [pipeline.TrainBatches(source(), crop(), BATCH, range(BATCH), 7, 12)[k] for k in range(12)]
    order = np.concatenate([batch["label"] for batch in whole])
    stream = pipeline.TrainBatches(some_broken(), crop(), BATCH, range(BATCH), 7, 10, skip=True)
    said = []
    skipped = pipeline.Skipped(said.append)
    with pipeline.iterate(stream, 0, data(workers=workers, threads=threads), skipped) as iterator:
        got = list(iterator)
    assert set(got[0]) == {"image", "label", "window"}
    labels, windows = (np.concatenate([batch[name] for batch in got]) for name in ("label", "window"))
    want = [next(label for label in order[place:] if label not in SomeBroken.broken) for place in range(160)]
    np.testing.assert_array_equal(labels, want)
    np.testing.assert_array_equal(windows, np.concatenate([batch["window"] for batch in whole])[:160])
    assert len(said) == 3
    assert set(said) == {
        f"skipped: folder/{index}.jpg: not an image file; remove it or replace it" for index in SomeBroken.broken
    }
    assert skipped.count >= np.isin(order[:160], SomeBroken.broken).sum() >= 9


def test_without_skip_a_broken_image_is_an_error():
    with pytest.raises(UserError, match=r"folder/\d+\.jpg: not an image"):
        [pipeline.TrainBatches(some_broken(), crop(), BATCH, range(BATCH), 7, 10)[k] for k in range(4)]
    with pytest.raises(UserError, match=r"folder/3\.jpg: not an image"):
        pipeline.EvalBatches(some_broken(), augment.CentreCrop(8, None), BATCH, range(BATCH))[0]


def test_when_nothing_can_be_read_it_is_not_the_images():
    with pytest.raises(UserError, match="100 images in a row cannot be read; the last one: folder/"):
        pipeline.TrainBatches(some_broken(range(COUNT)), crop(), BATCH, range(BATCH), 7, 10, skip=True)[0]
    with pytest.raises(UserError, match="the first 50 test images cannot be read"):
        pipeline.EvalBatches(some_broken(range(COUNT)), augment.CentreCrop(8, None), 4, range(4), skip=True)[0]


@pytest.mark.parametrize("broken", [(3, 17, 18), (0, 49)])
def test_evaluation_leaves_broken_images_out_and_says_so(broken):
    stream = pipeline.EvalBatches(some_broken(broken), augment.CentreCrop(8, None), BATCH, range(BATCH), skip=True)
    said = []
    with pipeline.iterate(stream, 0, data(), pipeline.Skipped(said.append)) as iterator:
        got = {name: np.concatenate(parts) for name, parts in _columns(iterator).items()}
    np.testing.assert_array_equal(got["label"][got["mask"]], [i for i in range(COUNT) if i not in broken])
    np.testing.assert_array_equal(np.flatnonzero(got["skipped"]), broken)
    assert len(said) == len(broken)


def _columns(batches):
    batches = list(batches)
    return {name: [batch[name] for batch in batches] for name in batches[0]}
