"""Checkpoints with Orbax: written in the background, whole or not at all; the last ones and the best ones are kept.

A checksum of all arrays is kept beside them, since Orbax reads a file with a flipped bit without a word.
"""

import contextlib
import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax import parallel
from resnet_jax.config import CheckpointConfig
from resnet_jax.errors import UserError
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import as_path, is_bucket, reached


class DamagedCheckpoint(UserError):
    """It cannot be read, or is not what was written."""


@dataclasses.dataclass
class Progress:
    """What a run knows besides its state, so that its log goes on as if it had never stopped.

    Attributes:
      window: sums over the steps since the last row of training metrics.
      seconds: spent training so far, all parts of the run together.
      device_seconds: the same times the devices that each part had.
    """

    window: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    device_seconds: float = 0.0


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, one folder per step; a context manager, which waits for the last one."""

    def __init__(self, workdir: pathlib.Path | epath.Path, config: CheckpointConfig, read_only: bool = False):
        """Opens the folder, and makes it unless `read_only`.

        Args:
          workdir: of the run.
          config: what to keep.
          read_only: only `steps`, `best_step` and `restore`; safe beside a run that is saving.

        Raises:
          UserError: it cannot be opened.
        """
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            # A policy and not `max_to_keep`, which together with `best_fn` would delete the newest checkpoint.
            keep.append(policies.BestN(get_metric_fn=_top1, n=config.keep_best, keep_checkpoints_without_metrics=False))
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            best_fn=_top1,
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        path = as_path(workdir)
        self.folder = (path if is_bucket(path) else path.resolve()) / "checkpoints"
        handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
        with reached(path):
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"{self.folder}: is a file; checkpoints need a folder there")
            if read_only and not self.folder.is_dir():
                raise UserError(f"{self.folder}: no checkpoints; train first")
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(Exception) if kind else self._named_failure():
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The kept step with the highest top-1 accuracy, or None."""
        return self._manager.best_step()

    def channels(self, step: int) -> int:
        """The number of image channels of the run.

        Raises:
          UserError: the checkpoint is damaged.
        """
        with self._named_damage(step):
            return self._manager.item_metadata(step)["state"].tree["pixels"]["std"].shape[-1]

    def save(self, step: int, state: TrainState, progress: Progress, scores: dict[str, float] | None) -> None:
        """Starts saving; returns when the state is copied and may be donated.

        Args:
          step: updates made.
          state: to save.
          progress: stored beside it.
          scores: of the evaluation at this step, if there was one ('top1' decides which are best).
        """
        parts = _parts(state)
        known = dataclasses.asdict(progress) | {"checksum": checksum(parts)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(parts), progress=ocp.args.JsonSave(known))
        with self._named_failure():
            self._manager.save(step, args=items, metrics=scores, force=True)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: it could not be written; what was there before still is.
        """
        with self._named_failure():
            self._manager.wait_until_finished()

    def restore_last(self, abstract: TrainState, say: Callable[[str], None]) -> tuple[TrainState, Progress]:
        """Reads the newest checkpoint that is not damaged; damaged ones become `damaged-checkpoint-STEP` in the workdir.

        Args:
          abstract: as for `restore`.
          say: is told of damaged ones.

        Raises:
          UserError: none can be read, or it is one of another network.
        """
        steps = self.steps()
        for step, older in zip(reversed(steps), [*reversed(steps[:-1]), None], strict=True):
            restored, damage = None, None
            try:
                restored = self.restore(step, abstract)
            except DamagedCheckpoint as error:
                damage = error
            if parallel.all_of(damage is None):
                return restored
            damage = damage or DamagedCheckpoint(f"{self.folder}/{step}: damaged checkpoint, as another process says")
            if older is None:
                raise damage
            say(f"warning: {damage}")
            self._set_aside(step)
        raise UserError(f"{self.folder}: no checkpoint")

    def _set_aside(self, step: int) -> None:
        if parallel.is_main():
            place = self.folder.parent / f"damaged-checkpoint-{step}"
            while place.exists():
                place = place.with_name(f"{place.name}_")
            try:
                (self.folder / str(step)).rename(place)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{self.folder / str(step)}: cannot be moved to {place} ({reason})") from error
        parallel.agreed(0)  # nobody goes on before that is done
        self._manager.reload()

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Progress]:
        """Reads a checkpoint.

        Args:
          step: one of `steps()`.
          abstract: shapes, dtypes and shardings to restore into (`abstract_state`); any number of devices.

        Raises:
          UserError: no such step, a damaged checkpoint, or one of another network.
        """
        if step not in self.steps():
            raise UserError(f"{self.folder}: no checkpoint of step {step}; there are {self.steps() or 'none'}")
        with self._named_damage(step):
            self._check_structure(step, abstract)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(_parts(abstract)), progress=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
            expected = restored["progress"].get("checksum")  # None: by an older version
            if expected is not None and checksum(restored["state"]) != expected:
                raise ValueError("its arrays are not those that were written")
            known = {field.name for field in dataclasses.fields(Progress)}  # another version's fields are left out
            return TrainState(**restored["state"]), Progress(**{k: v for k, v in restored["progress"].items() if k in known})

    @contextlib.contextmanager
    def _named_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax meets damage with whatever its layers raise
            unreadable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if unreadable or isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
                reason = " ".join(str(error).split())[:120]
                raise UserError(f"{self.folder}/{step}: cannot be read now ({reason}); it is left as it is") from error
            older = [other for other in self.steps() if other < step]
            advice = f"step {older[-1]} is the one before it" if older else "there is none before it: use another --workdir"
            reason = " ".join(str(error).split())[:120]
            raise DamagedCheckpoint(
                f"{self.folder}/{step}: damaged checkpoint ({type(error).__name__}: {reason}); {advice}"
            ) from error

    @contextlib.contextmanager
    def _named_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax's writing threads, at the next call
            good = [step for step in self.steps() if (self.folder / str(step)).is_dir()]
            last = f"step {good[-1]} is there and whole" if good else "there is none yet"
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written ({type(error).__name__}: {reason}); {last}. Make room, or "
                "mend the disk, and run the same command again"
            ) from error

    def _check_structure(self, step: int, abstract: TrainState) -> None:
        """Orbax's own message for another network is a page long, and another dtype it casts without a word."""
        stored = _leaves(self._manager.item_metadata(step)["state"].tree)
        wanted = {
            jax.tree_util.keystr(path, simple=True, separator="/"): _describe(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
        }
        for name in sorted(wanted.keys() | stored.keys()):
            there, here = stored.get(name, "nothing"), wanted.get(name, "nothing")
            if there != here:
                raise UserError(
                    f"{self.folder}/{step}: a checkpoint of another network: {name} is {there} there and {here} here; "
                    "use the config it was made with, or another --workdir"
                )


def checksum(tree: Any) -> str:
    """CRC-32 of all arrays of a tree of dicts, by name, whatever devices they are on; 8 hexadecimal digits."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    value = 0
    for name in sorted(leaves):
        value = zlib.crc32(np.ascontiguousarray(leaves[name]), value)
    return f"{value:08x}"


def _parts(state: TrainState) -> dict[str, Any]:
    """The fields in use: so checkpoints without the others, from before there were such, can be read."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if part is not None}


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _leaves(tree: Any, prefix: str = "") -> dict[str, str]:
    """Array names, dtypes and shapes in Orbax's metadata, which has lists for tuples and None for empty nodes."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    elif tree is None or not hasattr(tree, "shape"):
        return {}
    else:
        return {prefix: _describe(tree)}
    found: dict[str, str] = {}
    for name, value in items:
        found |= _leaves(value, f"{prefix}/{name}" if prefix else str(name))
    return found
