"""Colour augmentation against the formulas of fb.resnet.torch and AlexNet, image by image in NumPy float64."""

import numpy as np
import pytest

from resnet_jax.data import augment, colour
from resnet_jax.data.normalize import normalize
from resnet_jax.errors import UserError
from tests.golden.inputs import photo

STD1 = np.ones((1, 1, 3), np.float32)


def philox(*key):
    return np.random.Generator(np.random.Philox(key=list(key)))


def grey(image):
    return 0.299 * image[..., :1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:]


def jittered(image, factors, order):
    """datasets/transforms.lua: M.Brightness, M.Contrast and M.Saturation blend the whole image, one after the other."""
    for index in order:
        other = (0.0, grey(image).mean(), grey(image))[index]
        image = factors[index] * image + (1 - factors[index]) * other
    return image


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_jitter_is_the_blends_one_after_the_other(order, monkeypatch):
    factors = (1.3, 0.7, 0.65)

    class Fixed:
        drawn = iter(factors[index] - 1 for index in order)

        def permutation(self, _):
            return order

        def uniform(self, low, high):
            assert (low, high) == (-0.4, 0.4)
            return next(self.drawn)

    image = photo(20, 30)
    drawn = colour.Colour(0.4, 0.0)(image, Fixed())
    batch = {"image": image[None]} | {name: value[None] for name, value in drawn.items()}
    got = normalize(batch, np.zeros((1, 1, 3), np.float32), STD1, pad=0)
    want = jittered(image.astype(np.float64), factors, order)
    np.testing.assert_allclose(got[0], want, atol=2e-4)
    assert want.max() > 255  # nothing is clipped


def test_jitter_draws_all_orders_and_the_whole_range():
    mean, rng = np.array([200.0, 100, 50]), philox(3, 1)
    shifts = np.array([colour.jitter(0.4, mean, rng)[1][0] for _ in range(3000)])
    matrices = np.array([colour.jitter(0.4, mean, rng)[0] for _ in range(3000)])
    product = matrices.sum(-1)[:, 0]  # of brightness and contrast, since saturation keeps grey as it is
    assert 0.36 <= product.min() < 0.42
    assert 1.85 < product.max() <= 1.96
    assert abs(product.mean() - 1) < 0.02
    assert len(np.unique(np.round(shifts, 9))) == 3000


def test_lighting_is_alexnets():
    """Covariance of the shifts: 255^2 P diag((std l)^2) P^T, by [p1 p2 p3] [a1 l1, a2 l2, a3 l3] with a ~ N(0, std)."""
    rng = philox(3, 2)
    shifts = np.array([colour.lighting(0.1, rng) for _ in range(60_000)])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    want = 255**2 * vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(shifts.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(shifts.T), want, rtol=0.03)
    # Mostly all channels go up or down together: the first component is brightness.
    assert (np.sign(shifts).min(1) == np.sign(shifts).max(1)).mean() > 0.9


def test_the_components_are_orthonormal():
    np.testing.assert_allclose(colour.EIGENVECTORS.T @ colour.EIGENVECTORS, np.eye(3), atol=2e-4)


def test_the_shift_comes_before_mean_and_deviation():
    image, mean, std = photo(8, 8), np.full((1, 1, 3), 10, np.float32), np.full((1, 1, 3), 4, np.float32)
    batch = {"image": np.stack([image, image]), "shift": np.array([[0, 0, 0], [4, -8, 12]], np.float32)}
    got = np.asarray(normalize(batch, mean, std, pad=0))
    np.testing.assert_allclose(got[1] - got[0], np.broadcast_to([1, -2, 3], (8, 8, 3)), atol=1e-5)
    np.testing.assert_allclose(got[0], (image - 10.0) / 4, atol=1e-5)


def test_padding_stays_zero():
    image, mean = photo(8, 8), np.random.RandomState(1).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    crop = augment.Augment(augment.PadCrop(8, 3, flip=True), colour=colour.Colour(0.4, 0.1))
    for i in range(20):
        example = crop(image, philox(0, i))
        batch = {name: value[None] for name, value in example.items()}
        got = np.asarray(normalize(batch, mean, STD1, pad=3))[0]
        top, left, flip = example["window"]
        changed = image @ example["matrix"].T.astype(np.float64) + example["shift"]
        want = np.pad(changed - mean, ((3, 3), (3, 3), (0, 0)))[top : top + 8, left : left + 8]
        np.testing.assert_allclose(got, want[:, ::-1] if flip else want, atol=1e-3)


def test_grey_images_are_refused():
    transform = augment.Augment(augment.PadCrop(8, 1, flip=False), colour=colour.Colour(0.0, 0.1))
    with pytest.raises(UserError, match=r"images have 1 channel: set data\.lighting and data\.colour_jitter to 0"):
        transform(photo(8, 8)[..., :1], philox(0, 0))
