"""What a run shows and writes: a progress bar or plain lines, metrics.jsonl, TensorBoard, curves.png."""

import json
import pathlib
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from resnet_jax.analysis.curves import draw_curves
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.section import flatten
from resnet_jax.training.boards import open_boards
from resnet_jax.training.workdir import Workdir


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
    [0, 1], images_per_second without compilation, data_wait the share of the time in [0, 1] that was spent waiting for data,
    utilisation the share of the devices' peak FLOP/s (where that is known), device_hours the devices times the hours trained
    so far, all parts of the run together.
    """

    def __init__(self, workdir: Workdir, config: TrainConfig, start: int, silent: bool = False):
        """Args: where; the config; steps made before; silent: write and say nothing (all processes but the first)."""
        self._config, self._steps, self._batch_size, self._silent = config.logging, config.steps, config.batch_size, silent
        self.workdir = workdir
        self._rows_path, self._curves_path = workdir.local / "metrics.jsonl", workdir.local / "curves.png"
        self._start, self._clock_start, self._wait = start, None, ""
        # A killed run may have logged more than its last checkpoint knows; those steps are now made again.
        rows = [row for row in read_rows(self._rows_path) if row["step"] <= start]
        self._rows = rows
        self._file, self._boards = None, []
        if not silent:
            temporary = self._rows_path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            temporary.replace(self._rows_path)
            self._file = self._rows_path.open("a", buffering=1)
            self._boards = open_boards(config.logging, workdir.local, start, flatten(config))
        self.interactive = sys.stderr.isatty() and not silent
        self._bar = tqdm(
            total=self._steps, initial=start, unit="step", disable=not self.interactive, dynamic_ncols=True, smoothing=0.1
        )

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        for board in self._boards:
            board.close()

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        if self._silent:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def step_done(self, step: int, loss: float, top1: float, learning_rate: float) -> None:
        """Moves the bar; `step` updates are made; the metrics are the last step's."""
        if self._clock_start is None:  # the first step of a run compiles
            self._clock_start, self._start = time.monotonic(), step
        text = (
            f"{self.images_per_second(step):.0f} images/s, loss {loss:.3f}, top-1 {100 * top1:.0f} %, "
            f"lr {learning_rate:g}{self._wait}"
        )
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
        if self._file:
            self._file.write(json.dumps(row) + "\n")
        for board in self._boards:
            board.write(step, split, metrics)
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
        """The metrics of the last evaluation; none on another machine than the log's that has made no evaluation."""
        row = next((row for row in reversed(self._rows) if row["split"] == "test"), {})
        return {name: value for name, value in row.items() if name not in ("step", "split")}

    def draw(self) -> None:
        """Renews curves.png; a run does not end for the sake of a picture."""
        if self._config.curves and not self._silent:
            try:
                draw_curves(self._rows, self._curves_path)
            except OSError as error:
                self.say(f"cannot draw {self._curves_path}: {error.strerror}")
