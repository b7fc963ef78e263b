"""Learning curves in the manner of the paper's Figs. 4 and 6: error over iterations, training thin, testing bold."""

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def draw_curves(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes a PNG of error and loss over the steps; nothing if there are no rows.

    Args:
      rows: of metrics.jsonl (`training.logging.Logger`).
      path: of the picture.
    """
    if not rows:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    error, loss = figure.subplots(1, 2)
    for split, style in (("train", {"lw": 1.0, "ls": "--"}), ("test", {"lw": 2.5})):
        chosen = [row for row in rows if row["split"] == split]
        steps = [row["step"] for row in chosen]
        marker = "o" if len(chosen) == 1 else None
        error.plot(steps, [100 * (1 - row["top1"]) for row in chosen], label=split, color="C0", marker=marker, **style)
        loss.plot(steps, [row["loss"] for row in chosen], label=split, color="C1", marker=marker, **style)
    for axes, name in ((error, "top-1 error (%)"), (loss, "cross-entropy")):
        axes.set(xlabel="step", ylabel=name, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
