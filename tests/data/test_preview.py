"""The picture of augmented samples."""

import numpy as np

from resnet_jax.data import preview, sources
from tests import helpers


def test_rows_are_images_and_columns_draws():
    config = helpers.validated(helpers.digits_config(seed=5))
    centres, *draws = preview.samples(config, rows=3, draws=6)
    assert centres.shape == (3, 8, 8, 1)
    images = sources.digits("train").images
    for row, centre in enumerate(centres):
        assert (images == centre).all((1, 2, 3)).sum() >= 1
        padded = np.pad(centre, ((1, 1), (1, 1), (0, 0)))
        windows = [padded[top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
        shown = [draw[row] for draw in draws]
        assert all(any(np.array_equal(s, w) or np.array_equal(s, w[:, ::-1]) for w in windows) for s in shown)
        assert len({s.tobytes() for s in shown}) > 2
    picture = preview.picture([centres, *draws])
    assert picture.size == (7 * 100, 3 * 100 - 4)
    np.testing.assert_array_equal(np.asarray(picture)[100:196:12, :96:12, 0], centres[1, ..., 0])


def test_mixed_samples():
    mixing = helpers.validated(helpers.digits_config(mix__mixup_alpha=1.0))
    plain = helpers.validated(helpers.digits_config())
    mixed, alone = (preview.samples(config, rows=3, draws=1)[1].astype(float) for config in (mixing, plain))
    # One share for the whole batch, found by least squares, explains it all up to rounding.
    partners = np.roll(alone, 1, 0)
    share = ((mixed - partners) * (alone - partners)).sum() / ((alone - partners) ** 2).sum()
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * alone + (1 - share) * partners, atol=0.6)
