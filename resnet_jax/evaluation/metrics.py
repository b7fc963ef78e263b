"""Scores as sums and counts, divided once at the end."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax


def batch_scores(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the unmasked images of one batch.

    Args:
      logits: `[batch, classes]`, at least float32.
      labels: int32 `[batch]`.
      mask: bool `[batch]`; False does not count.

    Returns:
      top1 and top5 (images whose class is the first, among the first five), count: int32; loss: summed cross-entropy.
      Equal logits rank by class number, so a network that says the same of every class is not right five times in five.
    """
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hits = best == labels[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "top1": (hits[:, 0] & mask).sum(),
        "top5": (hits.any(-1) & mask).sum(),
        "count": mask.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
    }


@dataclasses.dataclass
class Scores:
    """Totals over a data set.

    Attributes:
      top1, top5, count: images.
      loss: summed cross-entropy.
      skipped: images that were not scored, since they are broken (`data.on_error='skip'`).
      average: the scores of the weights' moving average on the same images, if it was tested beside them.
    """

    top1: int = 0
    top5: int = 0
    count: int = 0
    loss: float = 0.0
    skipped: int = 0
    average: "Scores | None" = None

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Adds the sums of one batch (`batch_scores`)."""
        self.top1 += int(batch["top1"])
        self.top5 += int(batch["top5"])
        self.count += int(batch["count"])
        self.loss += float(batch["loss"])
        self.skipped += int(batch.get("skipped", 0))

    def as_metrics(self) -> dict[str, float]:
        """Accuracies in [0, 1], the mean loss and the number of images, and of those not scored if there are any.

        With an average beside: its accuracies and loss too, as ema_top1, ema_top5 and ema_loss.
        """
        skipped = {"skipped": self.skipped} if self.skipped else {}
        average = self.average.as_metrics() if self.average else {}
        beside = {f"ema_{name}": average[name] for name in ("top1", "top5", "loss") if average}
        return (
            skipped
            | beside
            | {
                "top1": self.top1 / self.count,
                "top5": self.top5 / self.count,
                "loss": self.loss / self.count,
                "images": self.count,
            }
        )

    def __str__(self) -> str:
        top1, top5 = 100 * self.top1 / self.count, 100 * self.top5 / self.count
        skipped = f"; NOT SCORED: {self.skipped} broken images" if self.skipped else ""
        return f"top-1 {top1:.2f} % ({self.top1}/{self.count}), top-5 {top5:.2f} % ({self.top5}/{self.count}){skipped}"
