"""What is kept of the runs: a row each in results/cifar10.csv, and beside it their curves and layer responses.

    results/cifar10.csv                                          one row per run, COLUMNS
    results/cifar10_curves/1000_steps/plain20_seed0.csv          step, split, error (%), loss
    results/cifar10_responses/1000_steps/plain20_seed0.csv       network, layer, name, std

Tables and pictures are drawn from these files alone.
"""

import contextlib
import csv
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from resnet_jax.analysis.responses import write_csv
from resnet_jax.errors import UserError
from resnet_jax.training.logging import read_rows

KEY = ("network", "shortcut", "seed", "recipe")
COLUMNS = (
    *KEY,
    "steps",
    "test_error",
    "test_error_precise",
    "train_error",
    "train_error_running",
    "train_loss",
    "seconds",
    "device",
    "jax",
    "flax",
    "resnet_jax",
    "commit",
    "date",
    "curve",
)
DIGITS = {
    "test_error": 2,
    "test_error_precise": 2,
    "train_error": 3,
    "train_error_running": 2,
    "train_loss": 5,
    "seconds": 0,
}

Row = dict[str, str]


class Results:
    """The files of one CSV; rows are added under a lock and never changed."""

    def __init__(self, path: pathlib.Path):
        """Args: path: of the CSV, which need not exist yet."""
        self.path = path

    def rows(self) -> list[Row]:
        """All rows, as text.

        Raises:
          UserError: it is not such a file.
        """
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row or None in row.values() for row in rows):
            raise UserError(
                f"{self.path}: not a table of results (its columns must be {','.join(COLUMNS)}); mend or move it"
            )
        return rows

    def find(self, key: dict[str, Any]) -> Row | None:
        """The row with these values in KEY."""
        return next((row for row in self.rows() if all(row[name] == str(key[name]) for name in KEY)), None)

    def add(self, key: dict[str, Any], steps: int, result: dict[str, Any], workdir: pathlib.Path, folder: str) -> Row:
        """Adds the row, curve and responses of a run; what is there already stays.

        Args:
          key: values of KEY.
          steps: of the run.
          result: of `child.measure`, with commit and date.
          workdir: where its log is.
          folder: of its schedule, such as '1000_steps'.

        Returns:
          The row, as it is in the file.
        """
        name = f"{folder}/{workdir.name}.csv"
        with self._lock():
            if row := self.find(key):
                return row
            self._write_curve(read_rows(workdir / "metrics.jsonl"), self._beside("curves", name))
            if "responses" in result:
                write_csv({workdir.name.partition("_")[0]: result["responses"]}, self._beside("responses", name))
            values = {**key, "steps": steps, **result, "curve": name}
            for column, digits in DIGITS.items():
                values[column] = "" if values[column] is None else f"{values[column]:.{digits}f}"
            row = {column: str(values[column]) for column in COLUMNS}
            _write_rows([*self.rows(), row], self.path)
        return row

    def curve(self, row: Row) -> list[dict[str, Any]]:
        """The log of a run: step, split, error in percent, loss. Empty if it was not kept."""
        path = self._beside("curves", row["curve"], make=False)
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [
                {"step": int(r["step"]), "split": r["split"], "error": float(r["error"]), "loss": float(r["loss"])}
                for r in csv.DictReader(file)
            ]

    def responses(self, row: Row) -> list[float]:
        """The layer responses of a run, in order. Empty if they were not measured."""
        path = self._beside("responses", row["curve"], make=False)
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [float(r["std"]) for r in csv.DictReader(file)]

    def _beside(self, kind: str, name: str, make: bool = True) -> pathlib.Path:
        path = self.path.with_name(f"{self.path.stem}_{kind}") / name
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"--results={self.path}: cannot write there ({error.strerror})") from error
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @staticmethod
    def _write_curve(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("step", "split", "error", "loss"))
            for row in rows:
                writer.writerow((row["step"], row["split"], f"{100 * (1 - row['top1']):.3f}", f"{row['loss']:.5f}"))


def _write_rows(rows: list[Row], path: pathlib.Path) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
