"""Augmentation and normalisation against Pillow and NumPy, in full."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from resnet_jax import recipes
from resnet_jax.data import augment, normalize
from resnet_jax.data.sources import ArraySource, SyntheticSource
from resnet_jax.errors import UserError
from tests import helpers

GOLDEN = np.load(helpers.ROOT / "tests/golden/augment.npz")
QUANTILES = np.linspace(0.02, 0.98, 25)  # as in tests/golden/make_augment.py


def photo(height=120, width=150, channels=3):
    noise = np.random.RandomState(0).standard_normal((height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    return np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)


class TestResizedWindow:
    @pytest.mark.parametrize(("height", "width"), [(120, 150), (150, 120), (70, 70), (33, 200)])
    @pytest.mark.parametrize("short", [48, 64, 200])
    def test_equals_resizing_the_whole_image_and_cropping(self, height, width, short):
        pixels = photo(height, width)
        resized = augment.shorter_side(pixels, short)
        whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], Image.BILINEAR))
        for top, left in ((0, 0), (resized[0] - 40, resized[1] - 40), (3, 5)):
            got = augment.resized_window(pixels, resized, top, left, 40)
            difference = np.abs(got.astype(int) - whole[top : top + 40, left : left + 40])
            assert difference.max() <= 1, difference.max()

    def test_shorter_side(self):
        assert augment.shorter_side(np.empty((300, 500, 3)), 256) == (256, 426)
        assert augment.shorter_side(np.empty((500, 300, 3)), 256) == (426, 256)
        assert augment.shorter_side(np.empty((300, 300, 3)), 64) == (64, 64)

    def test_grey(self):
        assert augment.resized_window(photo(channels=1), (60, 75), 2, 3, 40).shape == (40, 40, 1)


class TestScaleCrop:
    def test_draws_scale_position_and_flip_uniformly(self):
        # A ramp in each direction: a crop's values tell its scale, position and flip.
        y, x = np.mgrid[0:200, 0:200]
        pixels = np.stack([x, y, 0 * x], -1).astype(np.uint8)
        transform = augment.ScaleCrop(32, 40, 80)
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        scales, flips, places = [], 0, []
        for _ in range(2000):
            crop = transform(pixels, rng)["image"].astype(float)
            slope = (crop[16, 28, 0] - crop[16, 4, 0]) / 24
            flips += slope < 0
            scales.append(200 / abs(slope))
            scale = 200 / ((crop[28, 16, 1] - crop[4, 16, 1]) / 24)
            places.append(crop[0, 16, 1] * scale / 200 / max(scale - 32, 1))
        assert crop.shape == (32, 32, 3)
        assert 900 < flips < 1100
        counts, _ = np.histogram(scales, 4, (39.5, 80.5))
        assert counts.min() > 400
        counts, _ = np.histogram(np.clip(places, 0, 1), 4, (0, 1))
        assert counts.min() > 350


class TestPadCrop:
    def test_is_a_window_of_the_padded_image_or_its_mirror(self):
        pixels = photo(32, 32)
        transform = augment.PadCrop(32, 4, flip=True)
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        seen = set()
        for _ in range(3000):
            example = transform(pixels, rng)
            top, left, flip = example["window"]
            want = padded[top : top + 32, left : left + 32]
            np.testing.assert_array_equal(example["image"], want[:, ::-1] if flip else want)
            seen.add((top, left, flip))
        assert len(seen) == 9 * 9 * 2

    def test_no_flip(self):
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        transform = augment.PadCrop(32, 4, flip=False)
        assert not any(transform(photo(32, 32), rng)["window"][2] for _ in range(50))

    def test_wrong_size(self):
        with pytest.raises(UserError, match=r"an image is 30x32 but data\.image_size is 32"):
            augment.PadCrop(32, 4, flip=True)(photo(30, 32), np.random.default_rng(0))


def same_distribution(boxes, golden):
    """Areas, ratios, tops and lefts of boxes (top, left, height, width) in 375 x 500, against torchvision's quantiles."""
    top, left, height, width = np.array(boxes, float).T
    for ours, theirs in zip((height * width, width / height, top, left), golden.T, strict=True):
        # The shares of our draws below their quantiles; a box's sides are whole, so many draws are equal.
        below = np.array([(np.mean(ours < q) + np.mean(ours <= q)) / 2 for q in theirs])
        # 40,000 draws there, 8,000 here: a standard deviation of at most 0.006.
        np.testing.assert_allclose(below, QUANTILES, atol=0.02)


class TestInceptionCrop:
    def test_boxes_are_torchvisions(self):
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        boxes = [augment.random_box(375, 500, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(8000)]
        same_distribution([box for box in boxes if box], GOLDEN["box/crop"])
        areas = np.array([box[2] * box[3] / (375 * 500) for box in boxes if box])
        assert 0.079 < areas.min() < 0.085

    @pytest.mark.parametrize("size", ["100x1000", "1000x100", "2x300"])
    def test_an_image_of_extreme_shape_gives_its_centre(self, size):
        height, width = map(int, size.split("x"))
        boxes = []

        class Spy:
            def crop(self, pixels, *box):
                boxes.append(box)
                return photo(4, 4)

        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        augment.InceptionCrop(4, (1.0, 1.0), resample=Spy())(np.zeros((height, width, 3), np.uint8), rng)
        assert boxes == [(*GOLDEN[f"fallback/{size}"], 4)]

    def test_is_the_box_resized_or_its_mirror(self):
        pixels, flips = photo(60, 80), 0
        for i in range(60):
            draw = lambda i=i: np.random.Generator(np.random.Philox(key=[1, i]))  # noqa: E731
            top, left, height, width = augment.random_box(60, 80, (0.08, 1.0), (3 / 4, 4 / 3), draw())
            box = Image.fromarray(pixels).crop((left, top, left + width, top + height))
            want = np.asarray(box.resize((32, 32), Image.BILINEAR))
            got = augment.InceptionCrop(32)(pixels, draw())["image"]
            flip = np.abs(got.astype(int) - want).max() > 1
            assert np.abs(got.astype(int) - (want[:, ::-1] if flip else want)).max() <= 1
            flips += flip
        assert 15 < flips < 45


class TestErasing:
    def test_boxes_are_torchvisions(self):
        rng = np.random.Generator(np.random.Philox(key=[1, 3]))
        boxes = np.array([augment.erased_box(375, 500, 1.0, rng) for _ in range(8000)])
        same_distribution(boxes, GOLDEN["box/erase"])
        areas = boxes[:, 2] * boxes[:, 3] / (375 * 500)
        assert 0.0195 < areas.min() < 0.021
        assert 0.325 < areas.max() < 0.332

    def test_the_probability(self):
        rng = np.random.Generator(np.random.Philox(key=[1, 3]))
        boxes = [augment.erased_box(32, 32, 0.25, rng) for _ in range(4000)]
        assert 900 < sum(box[2] > 0 for box in boxes) < 1100

    def test_the_box_is_zero_after_normalisation(self):
        images = np.stack([photo(12, 14)] * 3)
        erase = np.array([[2, 3, 4, 5], [0, 0, 0, 0], [11, 0, 1, 14]], np.int32)
        mean, std = np.full((1, 1, 3), 7, np.float32), np.full((1, 1, 3), 2, np.float32)
        want = (images.astype(np.float32) - 7) / 2
        want[0, 2:6, 3:8] = 0
        want[2, 11] = 0
        np.testing.assert_array_equal(normalize.normalize({"image": images, "erase": erase}, mean, std, 0), want)


class TestTrainTransform:
    def config(self, **data):
        config = recipes.paper_imagenet("resnet18")
        config.data.image_size, config.data.train_scale = 32, (40, 64)
        for name, value in data.items():
            setattr(config.data, name, value)
        return config

    def test_the_papers(self):
        transform = augment.train_transform(self.config())
        assert isinstance(transform.crop, augment.ScaleCrop)
        assert (transform.colour.lighting, transform.colour.jitter) == (0.1, 0.0)
        assert (transform.policy, transform.erasing) == (None, 0.0)

    def test_everything_at_once_is_a_function_of_the_draw(self):
        fields = {"augment": "inception_crop", "colour_jitter": 0.4, "policy": "randaugment", "random_erasing": 0.5}
        transform, digests = augment.train_transform(self.config(**fields)), set()
        for i in (0, 1, 2, 0, 1, 2):
            example = transform(photo(), np.random.Generator(np.random.Philox(key=[0, i])))
            assert {name: (v.shape, str(v.dtype)) for name, v in example.items()} == {
                "image": ((32, 32, 3), "uint8"),
                "matrix": ((3, 3), "float32"),
                "shift": ((3,), "float32"),
                "erase": ((4,), "int32"),
            }
            digests.add(b"".join(value.tobytes() for value in example.values()))
        assert len(digests) == 3

    def test_a_policy_goes_before_padding(self):
        """Otherwise padding would be moved, and the mean would not follow."""
        seen = []

        def policy(pixels, rng):
            seen.append(pixels.shape)
            return pixels

        for crop in (augment.PadCrop(8, 2, flip=True), augment.InceptionCrop(6)):
            augment.Augment(crop, policy)(photo(8, 8), np.random.Generator(np.random.Philox(key=[0, 1])))
        assert seen == [(8, 8, 3), (6, 6, 3)]


class TestTestSize:
    def view(self, **fields):
        config = recipes.paper_imagenet("resnet18")
        for name, value in fields.items():
            setattr(config.evaluation, name, value)
        view = augment.eval_transform(config)
        return view.size, view.resize

    def test_size_and_fraction(self):
        assert self.view() == (224, 256)
        assert self.view(crop_fraction=0.875) == (224, 256)
        assert self.view(crop_fraction=0.95, image_size=288) == (288, 303)  # timm rounds down too
        assert self.view(image_size=288, resize=320) == (288, 320)
        assert self.view(crop_fraction=1.0) == (224, 224)

    def test_a_mean_of_another_size_is_averaged(self):
        mean = np.random.RandomState(1).uniform(0, 255, (8, 8, 3)).astype(np.float32)
        image = photo(12, 12)
        got = normalize.normalize({"image": image[None]}, mean, np.ones((1, 1, 3), np.float32), pad=0)
        np.testing.assert_allclose(got[0], image - mean.astype(np.float64).mean((0, 1)), atol=1e-3)


class TestCentreCrop:
    def test_centre_of_the_resized_image(self):
        pixels = photo(120, 150)
        whole = np.asarray(Image.fromarray(pixels).resize((80, 64), Image.BILINEAR)).astype(int)
        got = augment.CentreCrop(56, 64)(pixels, None)["image"]
        assert np.abs(got - whole[4:60, 12:68]).max() <= 1

    def test_as_it_is(self):
        np.testing.assert_array_equal(augment.CentreCrop(40, None)(photo(40, 40), None)["image"], photo(40, 40))


class TestNormalize:
    def test_padding_is_zero_after_the_mean_is_subtracted(self):
        """The paper subtracts the per-pixel mean and then pads; here both happen the other way round, with one result."""
        images = np.random.RandomState(0).randint(0, 256, (64, 8, 8, 3)).astype(np.uint8)
        mean = np.random.RandomState(1).uniform(0, 255, (8, 8, 3)).astype(np.float32)
        std = np.array([2, 4, 8], np.float32).reshape(1, 1, 3)
        transform, want, examples = augment.PadCrop(8, 2, flip=True), [], []
        for i, image in enumerate(images):
            example = transform(image, np.random.Generator(np.random.Philox(key=[0, i])))
            top, left, flip = example["window"]
            padded = np.pad((image - mean) / std, ((2, 2), (2, 2), (0, 0)))
            crop = padded[top : top + 8, left : left + 8]
            want.append(crop[:, ::-1] if flip else crop)
            examples.append(example)
        batch = {name: np.stack([example[name] for example in examples]) for name in ("image", "window")}
        got = normalize.normalize(batch, mean, std, pad=2)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.stack(want), rtol=0, atol=1e-5)

    def test_channel_mean(self):
        image = np.full((2, 4, 4, 3), 100, np.uint8)
        mean, std = np.array([10, 20, 30.0], np.float32).reshape(1, 1, 3), np.full((1, 1, 3), 2, np.float32)
        got = normalize.normalize({"image": image}, mean, std, pad=0)
        np.testing.assert_array_equal(got[1, 3, 2], [45, 40, 35])

    def test_statistics_of_the_training_set(self):
        images = np.random.RandomState(0).randint(0, 256, (50, 8, 8, 3)).astype(np.uint8)
        source = ArraySource(images, np.zeros(50), ("a", "b"), "x")
        data = recipes.paper_cifar10("cifar_resnet20").data
        data.image_size, data.std = 8, "channel"
        got = normalize.statistics(data, source)
        np.testing.assert_allclose(got["mean"], images.astype(float).mean(0), rtol=1e-6)
        np.testing.assert_allclose(got["std"][0, 0], images.astype(float).std((0, 1, 2)), rtol=1e-6)
        data.mean = "channel"
        np.testing.assert_allclose(
            normalize.statistics(data, source)["mean"][0, 0], images.astype(float).mean((0, 1, 2)), rtol=1e-6
        )
        for mean in ("pixel", "channel", "imagenet", "none"):
            data.mean = mean
            shapes = normalize.statistics_shapes(data, 3)
            assert {k: v.shape for k, v in normalize.statistics(data, source).items()} == {
                k: v.shape for k, v in shapes.items()
            }

    def test_what_cannot_be_computed_is_refused(self):
        data = recipes.paper_imagenet("resnet18").data
        data.mean = "pixel"
        with pytest.raises(UserError, match="use 'imagenet' or 'none' here"):
            normalize.statistics(data, SyntheticSource(8, 2, 8, 0))
        data.mean = "imagenet"
        with pytest.raises(UserError, match="images have 1 channels"):
            normalize.statistics(data, ArraySource(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4), ("a", "b"), "x"))
