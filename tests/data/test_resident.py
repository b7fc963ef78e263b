"""Data on the device: the same distribution as from the host, a function of (seed, step) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel, recipes
from resnet_jax.data import augment, resident, sources
from resnet_jax.errors import UserError

COUNT, SIZE, PAD = 50, 8, 2
IMAGES = np.random.RandomState(0).randint(1, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
SOURCE = sources.ArraySource(IMAGES, np.arange(COUNT), tuple(map(str, range(COUNT))), "x")


def order(**fields):
    return resident.Order(**{"count": COUNT, "batch_size": 16, "seed": 3, **fields})


def test_each_epoch_is_a_permutation_of_its_own():
    stream = order()(0, 20).ravel()
    epochs = [stream[i * COUNT : (i + 1) * COUNT] for i in range(6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert not np.array_equal(order(seed=4)(0, 20).ravel(), stream)


def test_any_steps_at_once_are_the_same_stream():
    whole = order()(0, 12)
    np.testing.assert_array_equal(np.concatenate([order()(0, 5), order()(5, 1), order()(6, 6)]), whole)
    np.testing.assert_array_equal(order(repeats=3)(0, 12).ravel(), np.repeat(whole.ravel(), 3)[: 12 * 16])


def batch_of(step, indices, pad=PAD, flip=True, seed=0, mesh=None):
    mesh = mesh or parallel.make_mesh(1)
    make = jax.jit(resident.Augmenter(pad, flip, seed), out_shardings=parallel.by_batch(mesh))
    store = parallel.put_replicated(resident.load(SOURCE, SIZE), mesh)
    indices = parallel.put_columns({"index": np.asarray(indices, np.int32)[None]}, mesh)["index"][0]
    return jax.device_get(make(store, indices, jnp.int32(step)))


def test_crops_are_those_of_the_host_at_the_same_window():
    indices = order()(2, 1)[0]
    batch = batch_of(2, indices)
    np.testing.assert_array_equal(batch["label"], indices)

    class Drawn:
        """A generator that gives the device's draws to the host's transform."""

        def __init__(self, window):
            self._window = window

        def integers(self, *_, **__):
            return self._window[:2]

        def random(self):
            return 0.25 if self._window[2] else 0.75

    for image, index, window in zip(batch["image"], indices, batch["window"], strict=True):
        want = augment.PadCrop(SIZE, PAD, flip=True)(IMAGES[index], Drawn(window))
        np.testing.assert_array_equal(image, want["image"])
        np.testing.assert_array_equal(window, want["window"])


def test_windows_are_uniform_and_independent():
    many = np.zeros(6400, np.int32)
    windows = np.concatenate([batch_of(step, many)["window"] for step in range(5)])
    counts = np.zeros((2 * PAD + 1, 2 * PAD + 1, 2))
    np.add.at(counts, tuple(windows.T), 1)
    expected = len(windows) / counts.size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 86  # 49 degrees of freedom: less in 999 of 1000 cases; drawn from a fixed seed
    assert batch_of(0, many, flip=False)["window"][:, 2].max() == 0
    assert set(batch_of(0, many, pad=None)) == {"image", "label"}


def test_draws_depend_on_seed_and_step_and_not_on_devices():
    indices = order()(0, 1)[0]
    one, eight = batch_of(7, indices), batch_of(7, indices, mesh=parallel.make_mesh(8))
    for name in one:
        np.testing.assert_array_equal(one[name], eight[name])
    assert not np.array_equal(one["window"], batch_of(8, indices)["window"])
    assert not np.array_equal(one["window"], batch_of(7, indices, seed=1)["window"])


def test_any_source_of_that_size_can_be_loaded():
    stored = resident.load(sources.SyntheticSource(10, 3, 8, seed=1), 8)
    assert stored["image"].shape == (10, 8, 8, 3)
    assert stored["label"].tolist() == [0, 1, 2] * 3 + [0]
    with pytest.raises(UserError, match=r"data\.image_size=9, but the images are 8x8"):
        resident.load(SOURCE, 9)


def test_the_config_chooses():
    data = recipes.paper_cifar10("cifar_resnet20").data
    assert resident.augmenter(data, 5) == resident.Augmenter(4, True, 5)
