"""A picture of what training sees:  python -m resnet_jax.data.preview --config=configs/resnet50.py --config.data.root=PATH

One row per image of the training stream: first its centre crop, as in testing, then several draws of the augmentation,
and of mixup and CutMix where the config has them (with other images of the picture). Padded and erased pixels are black.
"""

import numpy as np
from absl import flags
from PIL import Image

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

OUT = flags.DEFINE_string("out", "preview.png", "The picture to write.")
ROWS = flags.DEFINE_integer("rows", 6, "Images.", lower_bound=1)
DRAWS = flags.DEFINE_integer("draws", 7, "Draws per image.", lower_bound=1)

GAP = 4  # pixels between samples


def samples(config: TrainConfig, rows: int, draws: int) -> list[np.ndarray]:
    """The columns of the picture: the centre crops, then the draws; each uint8 `[rows, size, size, channels]`."""
    from resnet_jax.data import augment, mix, pipeline, sources

    source = sources.open_source(config.data, "train", config.test_resize() or config.test_size())
    skip, mixer = config.data.on_error == "skip", mix.mixer(config)

    def batch(transform: augment.Transform, draw: int) -> pipeline.Batch:
        # Each image keeps its place in the stream and gets the draws of other places.
        stream = pipeline.TrainBatches(source, transform, rows, range(rows), config.seed + draw, 1, skip=skip)
        stream.order = pipeline.shuffled(source, config.seed)
        return stream[0]

    columns = [_shown(batch(augment.centre_transform(config), 0), config.data.pad)]
    for draw in range(draws):
        one = batch(augment.train_transform(config), draw)
        images = _shown(one, config.data.pad)
        if mixer is not None and rows > 1:
            mixed, _ = mixer(images.astype(np.float32), one["label"], np.int32(draw), len(source.classes))
            images = _pixels(mixed)
        columns.append(images)
    return columns


def _shown(batch: dict[str, np.ndarray], pad: int) -> np.ndarray:
    """A batch as the device sees it, but for the mean."""
    from resnet_jax.data.normalize import normalize

    channels = batch["image"].shape[-1]
    zero, one = np.zeros((1, 1, channels), np.float32), np.ones((1, 1, channels), np.float32)
    arrays = {name: value for name, value in batch.items() if name != "broken"}
    return _pixels(normalize(arrays, zero, one, pad))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(np.asarray(values)), 0, 255).astype(np.uint8)


def picture(columns: list[np.ndarray]) -> Image.Image:
    """A grid of the columns, in RGB; small images enlarged without smoothing."""
    rows, size, _, _ = columns[0].shape
    scale = max(1, 96 // size)
    side = size * scale + GAP
    grid = np.full((rows * side - GAP, len(columns) * side, 3), 255, np.uint8)
    for column, images in enumerate(columns):
        left = column * side + (GAP if column else 0)  # a wider gap after the centre crops
        for row, image in enumerate(images):
            image = np.broadcast_to(image, (size, size, 3)).repeat(scale, 0).repeat(scale, 1)
            grid[row * side : row * side + size * scale, left : left + size * scale] = image
    return Image.fromarray(grid)


def main(config: TrainConfig) -> None:
    image = picture(samples(config, ROWS.value, DRAWS.value))
    try:
        image.save(OUT.value)
    except (OSError, ValueError) as error:
        raise UserError(f"--out={OUT.value}: cannot write it ({error})") from error
    print(f"{OUT.value}: {ROWS.value} images, the centre crop and {DRAWS.value} draws of each")


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file)
