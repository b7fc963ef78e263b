"""Small data sets that live on the device: the host sends the order of the images, the device gathers and augments.

The distribution is that of `pipeline.TrainBatches` (each epoch a permutation of its own, section 4.2's padded crop and
flip), the draws are others. Batch k is a function of (seed, k) here too, whatever the number of devices and hosts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data.sources import Source
from resnet_jax.errors import UserError

Array = jax.Array
_STREAM = 1  # of the seed's random numbers: mixing and stochastic depth have others


def load(source: Source, size: int) -> dict[str, np.ndarray]:
    """The whole data set: image uint8 `[count, size, size, channels]`, label int32 `[count]`.

    Raises:
      UserError: an image has another size.
    """
    if hasattr(source, "images"):
        images, labels = source.images, source.labels
    else:
        records = [source[index] for index in range(len(source))]
        images = np.stack([record.image for record in records])
        labels = np.array([record.label for record in records], np.int32)
    if images.shape[1:3] != (size, size):
        raise UserError(f"data.image_size={size}, but the images are {images.shape[1]}x{images.shape[2]}; set it to that")
    return {"image": images, "label": labels}


@dataclasses.dataclass(frozen=True)
class Order:
    """An endless stream of the indices of `count` images: each epoch is a permutation of its own, of (seed, epoch).

    With `repeats`, so many consecutive positions show the same image.
    """

    count: int
    batch_size: int
    seed: int
    repeats: int = 1

    def __call__(self, step: int, steps: int) -> np.ndarray:
        """The indices of `steps` global batches from `step` on, int32 `[steps, batch_size]`."""
        positions = np.arange(step * self.batch_size, (step + steps) * self.batch_size)
        epochs, places = np.divmod(positions // self.repeats, self.count)
        indices = np.empty(len(positions), np.int32)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = _permutation(self.count, self.seed, int(epoch))[places[chosen]]
        return indices.reshape(steps, self.batch_size)


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


@dataclasses.dataclass(frozen=True)
class Augmenter:
    """Makes a training batch of images on the device.

    Attributes:
      pad: pixels of zero padding on each side; None: images stay as they are.
      flip: whether half of the images are mirrored.
      seed: of the run.
    """

    pad: int | None
    flip: bool
    seed: int

    def __call__(self, store: dict[str, Array], indices: Array, step: Array) -> dict[str, Array]:
        """The batch of a step, as `pipeline.TrainBatches` gives it to the device.

        Args:
          store: `load`'s arrays.
          indices: int32 `[batch]`, from `Order`.
          step: int32.
        """
        batch = {name: jnp.take(values, indices, axis=0) for name, values in store.items()}
        if self.pad is None:
            return batch
        key = jax.random.fold_in(jax.random.key(self.seed), _STREAM)
        place, mirrored = jax.random.split(jax.random.fold_in(key, step))
        corner = jax.random.randint(place, (len(indices), 2), 0, 2 * self.pad + 1, dtype=jnp.int32)
        flip = jax.random.bernoulli(mirrored, 0.5 if self.flip else 0.0, (len(indices), 1))
        window = jnp.concatenate([corner, flip.astype(jnp.int32)], 1)
        return batch | {"image": jax.vmap(self._crop)(batch["image"], window), "window": window}

    def _crop(self, image: Array, window: Array) -> Array:
        padded = jnp.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (window[0], window[1], jnp.int32(0)), image.shape)
        return jnp.where(window[2] > 0, crop[:, ::-1], crop)


def augmenter(data: DataConfig, seed: int) -> Augmenter:
    """What a config asks for (`validation` refuses what the device cannot do)."""
    return Augmenter(None if data.augment == "none" else data.pad, data.augment == "pad_crop", seed)
