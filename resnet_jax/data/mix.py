"""What happens to a batch as a whole, on the device: mixup, CutMix, label smoothing.

All of it is a function of (seed, step) and of the global batch, so that devices, hosts and resumes change nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from resnet_jax.config import TrainConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Blends every image, and its target, with another one of the batch.

    Attributes:
      mixup_alpha, cutmix_alpha: parameters of the Beta distributions; 0: without it. With both, each batch gets one of the
        two, with equal chance.
      label_smoothing: share of a target that is spread evenly over all classes.
      seed: of the run.
      distance: rows from an image to its partner: those before it are copies of it, with repeated augmentation. Only so
        many rows travel between devices.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0
    distance: int = 1

    def __call__(self, images: Array, labels: Array, step: Array, classes: int) -> tuple[Array, Array]:
        """Images and targets of one batch.

        Args:
          images: `[batch, height, width, channels]`, normalised.
          labels: int32 `[batch]`.
          step: the run's, int32.
          classes: how many there are.

        Returns:
          Images in their dtype, and targets `[batch, classes]`, of sum 1, in at least float32.
        """
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        targets = jax.nn.one_hot(labels, classes, dtype=dtype)
        if self.mixup_alpha or self.cutmix_alpha:
            own, share = self.weights(step, *images.shape[1:3])
            own, share = own.astype(images.dtype)[None, :, :, None], share.astype(dtype)
            images = own * images + (1 - own) * jnp.roll(images, self.distance, 0)
            targets = share * targets + (1 - share) * jnp.roll(targets, self.distance, 0)
        return images, targets * (1 - self.label_smoothing) + self.label_smoothing / classes

    def weights(self, step: Array, height: int, width: int) -> tuple[Array, Array]:
        """The weight of an image's own pixels, float32 `[height, width]`, and of its own label."""
        which, first, second = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), step), 3)
        if not self.cutmix_alpha:
            return mixup_weights(first, self.mixup_alpha, height, width)
        if not self.mixup_alpha:
            return cutmix_weights(second, self.cutmix_alpha, height, width)
        cut = jax.random.bernoulli(which)
        one, other = (
            cutmix_weights(second, self.cutmix_alpha, height, width),
            mixup_weights(first, self.mixup_alpha, height, width),
        )
        return jnp.where(cut, one[0], other[0]), jnp.where(cut, one[1], other[1])


def mixup_weights(key: Array, alpha: float, height: int, width: int) -> tuple[Array, Array]:
    """The same weight everywhere, from Beta(alpha, alpha)."""
    own = jax.random.beta(key, jnp.float32(alpha), jnp.float32(alpha), dtype=jnp.float32)
    return jnp.full((height, width), own), own


def cutmix_weights(key: Array, alpha: float, height: int, width: int) -> tuple[Array, Array]:
    """0 in a box and 1 elsewhere.

    As torchvision's CutMix: sides in proportion to the image's, of the area that Beta(alpha, alpha) leaves; the centre
    anywhere; what sticks out is cut off, and the label's weight is the share of pixels that stay.
    """
    area, y, x = jax.random.split(key, 3)
    own = jax.random.beta(area, jnp.float32(alpha), jnp.float32(alpha), dtype=jnp.float32)

    def inside(key: Array, length: int) -> Array:
        half = (0.5 * jnp.sqrt(1 - own) * length).astype(jnp.int32)
        centre = jax.random.randint(key, (), 0, length, dtype=jnp.int32)
        place = jnp.arange(length, dtype=jnp.int32)
        return (place >= centre - half) & (place < centre + half)

    kept = ~(inside(y, height)[:, None] & inside(x, width)[None])
    return kept.astype(jnp.float32), kept.astype(jnp.float32).mean()


def mixer(config: TrainConfig) -> Mixer | None:
    """What a config asks for; None: nothing, and targets are class numbers."""
    mix = config.mix
    if not (mix.mixup_alpha or mix.cutmix_alpha or mix.label_smoothing):
        return None
    return Mixer(mix.mixup_alpha, mix.cutmix_alpha, mix.label_smoothing, config.seed, config.data.repeats)
