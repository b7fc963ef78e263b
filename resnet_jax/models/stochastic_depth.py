"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, images skip residual branches at random."""

import dataclasses

import jax
import jax.numpy as jnp

from resnet_jax.config import TrainConfig
from resnet_jax.models import zoo

Array = jax.Array


def drop_rates(rate: float, blocks: int, rule: str) -> list[float]:
    """The probability to skip each of so many blocks, from the first to the last.

    'linear' is the paper's decay rule, l / L * rate for block l of L; 'constant' is `rate` everywhere.

    >>> drop_rates(0.5, 4, "linear")
    [0.125, 0.25, 0.375, 0.5]
    """
    return [rate * (block / blocks if rule == "linear" else 1.0) for block in range(1, blocks + 1)]


@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """Draws which image skips which block: a function of the seed, the step and the image's row in the global batch.

    Attributes:
      rates: the probability to skip, block by block.
      seed: of the run.
    """

    rates: tuple[float, ...]
    seed: int = 0

    def __call__(self, step: Array, batch_size: int) -> Array:
        """What each residual branch is multiplied by, float32 `[batch, blocks]`: 0, or 1 / (1 - rate).

        Huang et al. multiply by 1 in training and by 1 - rate at test; dividing in training, as torchvision and timm do,
        leaves the network at test as it is, and is the same but for the size of the branch.
        """
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 0x0D0), step)
        stay = 1 - jnp.asarray(self.rates, jnp.float32)[None]
        kept = jax.random.uniform(key, (batch_size, len(self.rates)), jnp.float32) < stay
        return kept.astype(jnp.float32) / stay


def stochastic_depth(config: TrainConfig) -> StochasticDepth | None:
    """What a config asks for; None: no block is ever skipped."""
    model = config.model
    if not model.drop_path:
        return None
    blocks = sum(zoo.architecture(model.name).stage_sizes)
    return StochasticDepth(tuple(drop_rates(model.drop_path, blocks, model.drop_path_rule)), config.seed)
