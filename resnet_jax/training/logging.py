"""What a run shows and writes: a progress bar or plain lines, metrics.jsonl, TensorBoard, curves.png."""

import json
import pathlib
import sys
import time
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from resnet_jax.analysis.curves import draw_curves
from resnet_jax.config import LoggingConfig
from resnet_jax.errors import UserError


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
      UserError: a line before it is no row.
    """
    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "split": str(row["split"]), **row})
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a row of metrics; mend or remove that line") from error
    return rows


class Logger:
    """The log of one run in `workdir`; a context manager.

    A row of metrics.jsonl has `step` (updates made), `split` ('train': over the steps since the last row; 'test': of
    an evaluation; 'precise': of one with precise batch-norm statistics) and metrics: losses are means, top1 and top5 in
    [0, 1], images_per_second without compilation, data_wait the share of the time in [0, 1] that was spent waiting for data.
    """

    def __init__(self, workdir: pathlib.Path, config: LoggingConfig, start: int, steps: int, batch_size: int):
        """Args: where; what to write; the first step of this part of the run; steps in all; images per step."""
        self._config, self._steps, self._batch_size = config, steps, batch_size
        self._rows_path, self._curves_path = workdir / "metrics.jsonl", workdir / "curves.png"
        self._start, self._clock_start, self._wait = start, None, ""
        # A killed run may have logged more than its last checkpoint knows; those steps are now made again.
        rows = [row for row in read_rows(self._rows_path) if row["step"] <= start]
        temporary = self._rows_path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(self._rows_path)
        self._rows = rows
        self._file = self._rows_path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1) if config.tensorboard else None
        self.interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not self.interactive, dynamic_ncols=True, smoothing=0.1
        )

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def step_done(self, step: int, loss: float) -> None:
        """Moves the bar; `step` updates are made."""
        if self._clock_start is None:  # the first step of a run compiles
            self._clock_start, self._start = time.monotonic(), step
        text = f"{self.images_per_second(step):.0f} images/s, loss {loss:.3f}{self._wait}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def images_per_second(self, step: int) -> float:
        """Mean speed of this part of the run, evaluations and checkpoints included, compilation not."""
        elapsed = time.monotonic() - (self._clock_start or time.monotonic())
        return (step - self._start) * self._batch_size / elapsed if elapsed > 0 else 0.0

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds a row."""
        row = {"step": step, "split": split, **metrics}
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        if split == "train":
            self._wait = f", {100 * metrics['data_wait']:.0f} % waiting for data"
        if split == "train" and not self.interactive:
            speed, wait = metrics["images_per_second"], 100 * metrics["data_wait"]
            left = f"{(self._steps - step) * self._batch_size / speed / 60:.1f} min left" if speed else "first steps"
            self.say(
                f"step {step}/{self._steps}  loss {metrics['loss']:.4f}  top-1 {100 * metrics['top1']:.1f} %  "
                f"lr {metrics['learning_rate']:g}  {speed:.0f} images/s, {wait:.0f} % waiting for data  {left}"
            )

    def evaluated(self, step: int, split: str = "test") -> bool:
        """Whether the evaluation at a step is in the log."""
        return any(row["step"] == step and row["split"] == split for row in self._rows)

    def last_scores(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        row = [row for row in self._rows if row["split"] == "test"][-1]
        return {name: value for name, value in row.items() if name not in ("step", "split")}

    def draw(self) -> None:
        """Renews curves.png; a run does not end for the sake of a picture."""
        if self._config.curves:
            try:
                draw_curves(self._rows, self._curves_path)
            except OSError as error:
                self.say(f"cannot draw {self._curves_path}: {error.strerror}")
