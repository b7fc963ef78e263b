"""Where a run lives: a folder, or a bucket's (`gs://BUCKET/PATH`).

A bucket has no files that grow and no locks. Checkpoints and config.json are written to it directly; the log is written to a
local folder and sent before each checkpoint, so that it knows at least as many steps.
"""

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator

from etils import epath

from resnet_jax import lock
from resnet_jax.errors import UserError

READ_AGAIN = ("metrics.jsonl", "wandb_id")  # by a run that goes on


def as_path(workdir: str | pathlib.PurePath | epath.Path) -> epath.Path:
    """A folder or `gs://BUCKET/PATH` as a path; nothing is read.

    Raises:
      UserError: another URL.
    """
    text = str(workdir)
    if re.match(r"[a-z0-9]+:/", text) and not re.match(r"gs://[^/]", text):
        raise UserError(f"--workdir={text}: must be a folder or gs://BUCKET/PATH")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs in pages what it raises too
    return epath.Path(workdir)


def is_bucket(path: epath.Path) -> bool:
    """Whether it begins with `gs://`."""
    return str(path).startswith("gs://")


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file that is there whole or not at all, however the program ends."""
    if is_bucket(path):  # an object appears when all of it is there
        path.write_text(text)
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def reached(path: epath.Path) -> Iterator[None]:
    """Turns what reading or writing there may raise into one line with the path; anything can go wrong with a bucket."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--workdir={path}: cannot be used ({reason}); choose another folder") from error
    except ImportError as error:
        raise UserError(f"--workdir={path}: gs:// needs gcsfs: pip install gcsfs") from error
    except Exception as error:
        if not is_bucket(path):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"--workdir={path}: the bucket cannot be used ({reason})") from error


@dataclasses.dataclass
class Workdir:
    """The place of one run, as `own` gives it.

    Attributes:
      path: as the user named it; config.json and checkpoints are there.
      local: where the log is written: the same folder, or, of a bucket, a temporary one.
      writes: whether this process writes the log.
    """

    path: epath.Path
    local: pathlib.Path
    writes: bool = True
    _sent: dict[pathlib.Path, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def send(self) -> bool:
        """Sends what has changed in the log to the bucket; returns whether that worked. For a folder, does nothing."""
        if not (self.writes and is_bucket(self.path)):
            return True
        try:
            for file in sorted(self.local.rglob("*")):
                name = file.relative_to(self.local)
                if file.is_file() and name.parts[0] != "wandb" and file.suffix != ".tmp":  # wandb sends its own
                    self._send(file, self.path / str(name))
        except Exception as error:  # the run does not end for its log; a checkpoint that cannot be written ends it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"warning: {self.path}: the log could not be sent ({reason})", file=sys.stderr, flush=True)
            return False
        return True

    def _send(self, file: pathlib.Path, to: epath.Path) -> None:
        state = file.stat()
        identity = (state.st_mtime_ns, state.st_size)
        if self._sent.get(file) != identity:
            to.write_bytes(file.read_bytes())
            self._sent[file] = identity


@contextlib.contextmanager
def own(workdir: str | pathlib.PurePath | epath.Path, writes: bool = True) -> Iterator[Workdir]:
    """Makes the folder of a run and holds it: two runs in one folder would ruin each other's files.

    In a bucket, only another run on the same machine is noticed.

    Args:
      workdir: a folder or `gs://BUCKET/PATH`.
      writes: False for all processes of a run but the first.

    Raises:
      UserError: it cannot be written, or another run holds it.
    """
    path = as_path(workdir)
    if is_bucket(path):
        with _own_bucket(path, writes) as owned:
            yield owned
        return
    owned = Workdir(path, pathlib.Path(workdir), writes)
    if not writes:
        yield owned
        return
    with reached(path):
        owned.local.mkdir(parents=True, exist_ok=True)
        (owned.local / ".lock").touch()
    with _held(path, owned.local / ".lock"):
        yield owned


@contextlib.contextmanager
def _own_bucket(path: epath.Path, writes: bool) -> Iterator[Workdir]:
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="resnet_jax_"))
    owned = Workdir(path, temporary / path.name, writes)  # boards show the last part
    owned.local.mkdir()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        if writes:
            stack.enter_context(_held(path, pathlib.Path(tempfile.gettempdir()) / f"resnet_jax_{name}.lock"))
        with reached(path):
            if writes:
                (path / "writable").write_text("")
                (path / "writable").unlink()
            for file in READ_AGAIN:
                if (path / file).exists():
                    (owned.local / file).write_bytes((path / file).read_bytes())
        try:
            yield owned
        finally:
            if not owned.send():
                stack.pop_all()
                print(f"warning: the log stays in {owned.local}", file=sys.stderr, flush=True)


def _held(path: epath.Path, file: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return lock.held(file, f"--workdir={path}: another run is using it; wait for its end or choose another")
