"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases."""

import importlib
import pathlib
import secrets
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from resnet_jax.config import LoggingConfig
from resnet_jax.errors import UserError


class Board(Protocol):
    """Shows the metrics of a run."""

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: pathlib.Path, start: int):
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds one point to each metric's curve, named split/metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases for one workdir: WORKDIR/wandb_id names it, so that a resumed run goes on there.

    Steps that a killed run had logged and that are made again appear twice, since nothing can be taken back there.
    """

    def __init__(self, workdir: pathlib.Path, project: str, settings: dict[str, Any]):
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"logging.wandb={project!r}: the package wandb is not installed; pip install wandb, or leave it out"
            ) from error
        identity = workdir / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project, id=identity.read_text(), resume="allow", dir=str(workdir), name=workdir.name, config=settings
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs the metrics as split/metric, over `step`."""
        self._run.log({"step": step} | {f"{split}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def open_boards(config: LoggingConfig, workdir: pathlib.Path, start: int, settings: dict[str, Any]) -> list[Board]:
    """The boards that a config asks for; `settings`: the whole config, flat.

    Raises:
      UserError: `logging.wandb` without the package.
    """
    boards: list[Board] = []
    if config.wandb:
        boards.append(WeightsAndBiases(workdir, config.wandb, settings))
    if config.tensorboard:
        boards.append(TensorBoard(workdir, start))
    return boards
