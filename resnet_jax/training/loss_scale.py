"""Dynamic loss scaling for float16 (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2).

float16 has no values below 6e-8: small gradients vanish. So the loss is multiplied by a scale before the backward pass and
the float32 gradients divided by it afterwards. A step whose gradients overflow is skipped, and the scale halved; after
`INTERVAL` good steps in a row it is doubled.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
INTERVAL = 2000
LARGEST = 2.0**24
MOST_SKIPPED = 50  # steps in a row after which a run ends: from the largest scale, 24 halvings lead to 1


@flax.struct.dataclass
class LossScale:
    """The scale, a part of the training state.

    Attributes:
      scale: float32, a power of two.
      good: int32, steps since the last skipped one or the last doubling.
      skipped: int32, steps skipped in a row, up to now.
    """

    scale: Array
    good: Array
    skipped: Array


def init() -> LossScale:
    """Before the first step, NumPy: 2^16, as usual."""
    return LossScale(np.float32(2**16), np.int32(0), np.int32(0))


def update(state: LossScale, finite: Array) -> LossScale:
    """After a step whose gradients were all finite, or not (bool)."""
    grows = finite & (state.good + 1 >= INTERVAL)
    factor = jnp.where(finite, jnp.where(grows, 2, 1), 0.5).astype(jnp.float32)
    return LossScale(
        scale=jnp.clip(state.scale * factor, 1, LARGEST),
        good=jnp.where(finite & ~grows, state.good + 1, 0),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )


def all_finite(tree: Any) -> Array:
    """Whether every value is, bool."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def choose(finite: Array, new: Any, old: Any) -> Any:
    """The new tree after a step that counts, the old one bit for bit after a skipped one."""
    return jax.tree.map(lambda there, here: jnp.where(finite, there, here), new, old)
