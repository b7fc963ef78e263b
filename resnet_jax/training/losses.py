"""Losses per image."""

import jax
import optax

from resnet_jax.config import LossConfig


def losses(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """The loss of each image, `[batch]`, in the logits' dtype.

    Args:
      logits: `[batch, classes]`, at least float32.
      targets: class numbers, int32 `[batch]`, or the classes' shares, `[batch, classes]`.
      config: which.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[3.0, 1.0]]))
    >>> [round(float(losses(logits, jnp.array([0]), LossConfig(name))[0]), 4)
    ...  for name in ("cross_entropy", "bce_sum", "bce_mean")]  # -log 3/4, -log 3/4 - log 1/2, half of it
    [0.2877, 0.9808, 0.4904]
    """
    if config.name == "cross_entropy":
        if targets.ndim == 1:
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    if config.target_threshold is not None:
        targets = targets > config.target_threshold
    each = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    return each.sum(-1) if config.name == "bce_sum" else each.mean(-1)
