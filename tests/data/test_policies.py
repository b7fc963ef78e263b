"""RandAugment and TrivialAugment against torchvision's operations (tests/golden/make_augment.py)."""

import collections

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import policies
from tests import helpers
from tests.golden import inputs

GOLDEN = np.load(helpers.ROOT / "tests/golden/augment.npz")
HEIGHT, WIDTH, LEVELS = 16, 20, {False: 9, True: 20}


def philox(*key):
    return np.random.Generator(np.random.Philox(key=list(key)))


def keys(kind):
    return [key.split("/")[1:] for key in GOLDEN if key.startswith(f"{kind}/")]


def test_the_same_operations():
    assert {name for name, *_ in keys("operation")} == set(policies.OPERATIONS)
    for name, operation in policies.OPERATIONS.items():
        assert operation.signed == ([name, "True", "-1"] in keys("operation")) or operation.strongest is None


@pytest.mark.parametrize(("name", "wide", "sign"), keys("operation"), ids=lambda part: part)
def test_operation(name, wide, sign):
    image = Image.fromarray(inputs.photo(HEIGHT, WIDTH))
    got = policies.apply(name, image, LEVELS[wide == "True"], int(sign), wide == "True", "bilinear")
    want = GOLDEN[f"operation/{name}/{wide}/{sign}"]
    assert np.abs(np.asarray(got).astype(int) - want).max() <= 1
    assert (np.asarray(got) == want).mean() > 0.9  # magnitudes are float32 there


@pytest.mark.parametrize(("name", "wide"), keys("magnitude"), ids=lambda part: part)
def test_magnitudes(name, wide):
    side = HEIGHT if name == "TranslateY" else WIDTH
    got = [policies.OPERATIONS[name].magnitude(level, wide == "True", side) for level in range(31)]
    np.testing.assert_allclose(got, GOLDEN[f"magnitude/{name}/{wide}"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("count", "magnitude"), [(2, 9), (1, None)])
def test_draws_operations_levels_and_signs_uniformly(count, magnitude, monkeypatch):
    seen = []
    monkeypatch.setattr(policies, "apply", lambda name, image, *rest: seen.append((name, *rest)) or image)
    policy, rng = policies.Policy(count, magnitude, "bicubic"), philox(1, 1)
    for _ in range(6000 // count):
        policy(inputs.photo(4, 4), rng)
    names, levels, signs, wides, resamples = (collections.Counter(column) for column in zip(*seen, strict=True))
    assert len(seen) == 6000
    assert len(names) == 14
    assert min(names.values()) > 330  # of 429 expected
    assert abs(signs[1] - 3000) < 200
    assert (set(wides), set(resamples)) == ({magnitude is None}, {"bicubic"})
    assert set(levels) == ({magnitude} if magnitude else set(range(31)))
    assert magnitude or min(levels.values()) > 120  # of 194 expected


def test_grey_images():
    policy, rng = policies.Policy(4, None, "bilinear"), philox(1, 2)
    for _ in range(40):
        assert policy(inputs.photo(8, 9)[..., :1], rng).shape == (8, 9, 1)
