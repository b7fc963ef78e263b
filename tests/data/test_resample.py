"""Resizing against Pillow's and OpenCV's own, of the whole image."""

import cv2
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.resample import OPENCV, PILLOW, Resample, mirror
from tests.golden.inputs import photo


def worst(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(120, 150), (33, 200), (60, 60)])
class TestAntialiased:
    def test_a_crop_is_pillows(self, name, height, width):
        """As torchvision's resized_crop: crop first, then resize."""
        pixels = photo(height, width)
        for top, left, h, w in ((0, 0, height, width), (5, 7, 25, 40), (1, 2, 9, 11)):
            whole = Image.fromarray(pixels).crop((left, top, left + w, top + h)).resize((48, 48), PILLOW[name])
            got = Resample(name).crop(pixels, top, left, h, w, 48)
            assert got.shape == (48, 48, 3)
            assert got.dtype == np.uint8
            assert worst(got, np.asarray(whole)) <= 1

    def test_a_window_is_pillows(self, name, height, width):
        pixels = photo(height, width)
        for resized in ((50, 64), (100, 220)):
            whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], PILLOW[name]))
            for top, left in ((0, 0), (resized[0] - 40, resized[1] - 40), (3, 5)):
                got = Resample(name).window(pixels, resized, top, left, 40)
                assert worst(got, whole[top : top + 40, left : left + 40]) <= 1


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
class TestFast:
    def test_is_opencvs_resize(self, name):
        pixels = photo(120, 150)
        want = cv2.resize(pixels[10:90, 20:120].copy(), (48, 48), interpolation=OPENCV[name])
        np.testing.assert_array_equal(Resample(name, False).crop(pixels, 10, 20, 80, 100, 48), want)
        want = cv2.resize(pixels, (80, 64), interpolation=OPENCV[name])[3:43, 5:45]
        np.testing.assert_array_equal(Resample(name, False).window(pixels, (64, 80), 3, 5, 40), want)

    def test_differs_when_it_shrinks(self, name):
        noise = np.random.RandomState(0).randint(0, 256, (96, 96, 3)).astype(np.uint8)
        exact, fast = (Resample(name, antialias).crop(noise, 0, 0, 96, 96, 24) for antialias in (True, False))
        assert fast.std() > 1.5 * exact.std()  # aliases: the deviation of the noise stays


def test_fast_bilinear_is_pillows_when_nothing_shrinks():
    pixels = photo(60, 70)
    for box in ((0, 0, 60, 70), (10, 5, 48, 31), (3, 4, 20, 48)):
        assert worst(Resample(antialias=False).crop(pixels, *box, 72), Resample().crop(pixels, *box, 72)) <= 1


@pytest.mark.parametrize("antialias", [True, False])
def test_one_channel_stays_one(antialias):
    pixels = photo(60, 70)[..., :1]
    assert Resample("bicubic", antialias).crop(pixels, 1, 2, 30, 40, 24).shape == (24, 24, 1)
    assert Resample("bicubic", antialias).window(pixels, (30, 35), 1, 2, 24).shape == (24, 24, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror(channels):
    pixels = photo(6, 7)[..., :channels]
    np.testing.assert_array_equal(mirror(pixels), pixels[:, ::-1])
