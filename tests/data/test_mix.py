"""Mixup, CutMix and label smoothing against NumPy, PyTorch's losses (tests/golden/make_augment.py) and Beta's moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.config import LossConfig
from resnet_jax.data import mix
from resnet_jax.data.mix import Mixer
from resnet_jax.training.losses import losses
from tests import helpers
from tests.golden import inputs

GOLDEN = np.load(helpers.ROOT / "tests/golden/augment.npz")
IMAGES = np.stack([inputs.photo(12, 16 + i)[:, :16] for i in range(8)]).astype(np.float32)
LABELS = np.arange(8, dtype=np.int32)


def mixed(mixer, step=0):
    return [np.asarray(value) for value in mixer(jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.int32(step), 8)]


def one_hot(labels):
    return np.eye(8)[labels]


@pytest.mark.parametrize("distance", [1, 3])
def test_mixup(distance, strict_dtypes):
    mixer = Mixer(mixup_alpha=0.4, seed=3, distance=distance)
    shares = []
    for step in range(5):
        images, targets = mixed(mixer, step)
        share = targets[2, 2]  # the partner of row 2 has another class
        np.testing.assert_allclose(
            targets, share * one_hot(LABELS) + (1 - share) * one_hot(np.roll(LABELS, distance)), atol=1e-6
        )
        np.testing.assert_allclose(images, share * IMAGES + (1 - share) * np.roll(IMAGES, distance, 0), atol=1e-3)
        shares.append(share)
    assert len(set(shares)) == 5


def test_cutmix(strict_dtypes):
    """The box is found from the pixels, and its share of them must be the partner's share of the target."""
    mixer, areas = Mixer(cutmix_alpha=1.0, seed=3), set()
    for step in range(12):
        images, targets = mixed(mixer, step)
        other = np.roll(IMAGES, 1, 0)
        cut = (images != IMAGES).any((0, -1))
        if not cut.any():
            continue
        ys, xs = np.nonzero(cut)
        box = np.zeros((12, 16), bool)
        box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
        np.testing.assert_array_equal(images, np.where(box[None, :, :, None], other, IMAGES))
        share = 1 - box.mean()
        np.testing.assert_allclose(targets, share * one_hot(LABELS) + (1 - share) * one_hot(np.roll(LABELS, 1)), atol=1e-6)
        areas.add(box.sum())
    assert len(areas) > 6


def test_cutmix_box_is_torchvisions(monkeypatch):
    """Sides int(0.5 sqrt(1 - share) length) to either side of a centre, clipped."""
    for seed in range(12):
        key = jax.random.key(seed)
        area, y, x = jax.random.split(key, 3)
        share = float(jax.random.beta(area, jnp.float32(0.7), jnp.float32(0.7), dtype=jnp.float32))
        r_y, r_x = int(jax.random.randint(y, (), 0, 30)), int(jax.random.randint(x, (), 0, 50))
        r = 0.5 * np.sqrt(1 - share)
        want = np.ones((30, 50))
        want[
            max(r_y - int(r * 30), 0) : min(r_y + int(r * 30), 30), max(r_x - int(r * 50), 0) : min(r_x + int(r * 50), 50)
        ] = 0
        got, own = mix.cutmix_weights(key, 0.7, 30, 50)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(own, want.mean(), rtol=1e-6)


def test_shares_have_betas_moments():
    keys = jax.random.split(jax.random.key(0), 4000)
    for alpha in (0.2, 1.0):
        shares = np.asarray(jax.vmap(lambda key, a=alpha: mix.mixup_weights(key, a, 1, 1)[1])(keys))
        assert abs(shares.mean() - 0.5) < 0.02
        assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.006
        assert np.isfinite(shares).all()


def test_with_both_each_batch_gets_one():
    mixer = Mixer(mixup_alpha=1.0, cutmix_alpha=1.0, seed=1)
    weights = lambda step: mixer.weights(step, 16, 16)[0]  # noqa: E731
    cuts = [bool(np.isin(np.asarray(weights(jnp.int32(step))), (0, 1)).all()) for step in range(60)]
    assert 15 < sum(cuts) < 45


def test_a_function_of_seed_and_step():
    mixer = Mixer(mixup_alpha=0.4, seed=3)
    one, later = mixed(mixer, 4)[1], mixed(mixer, 5)[1]
    again, other = mixed(mixer, 4)[1], mixed(Mixer(mixup_alpha=0.4, seed=4), 4)[1]
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, later)


def test_devices_change_nothing():
    mixer, results = Mixer(cutmix_alpha=0.5, label_smoothing=0.1), []
    for devices in (1, 8):
        mesh = parallel.make_mesh(devices)
        batch = parallel.put_batch({"image": IMAGES, "label": LABELS}, mesh, 8)
        results.append(jax.jit(lambda b: mixer(b["image"], b["label"], jnp.int32(3), 8))(batch))
    for one, eight in zip(*results, strict=True):
        np.testing.assert_array_equal(one, eight)


def test_losses_are_pytorchs(x64):
    logits, labels, other = (GOLDEN[f"loss/{name}"] for name in ("logits", "labels", "other"))

    def loss(targets):
        return losses(jnp.asarray(logits), targets, LossConfig()).mean()

    step = jnp.int32(0)
    smooth = Mixer(label_smoothing=0.1)
    _, targets = smooth(jnp.zeros((6, 2, 2, 3)), jnp.asarray(labels), step, 7)
    np.testing.assert_allclose(loss(targets), GOLDEN["loss/smoothed"], rtol=1e-12)
    hard = (np.eye(7)[labels], np.eye(7)[other])
    targets = 0.9 * (0.3 * hard[0] + 0.7 * hard[1]) + 0.1 / 7
    np.testing.assert_allclose(loss(jnp.asarray(targets)), GOLDEN["loss/soft"], rtol=1e-12)
    np.testing.assert_allclose(loss(jnp.asarray(hard[0])), loss(jnp.asarray(labels)), rtol=1e-12)


def test_a_config_without_mixing_has_class_numbers_as_targets():
    assert mix.mixer(helpers.digits_config()) is None
    config = helpers.digits_config(mix__mixup_alpha=0.2, data__repeats=3, seed=9)
    assert mix.mixer(config) == Mixer(mixup_alpha=0.2, seed=9, distance=3)
