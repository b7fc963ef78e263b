"""A profile of a few steps, for TensorBoard's profile plugin, XProf or Perfetto."""

import pathlib
from types import TracebackType

import jax


class ProfileWindow:
    """Profiles the steps `steps`, (first, last), both included, into `folder`; nothing if it is empty.

    Those of them that are before a resumed run's start are left out. A context manager: a profile that is still running at
    its end is written.

    Attributes:
      edges: numbers of steps made at which it begins and ends: no dispatch of several steps may go over them.
    """

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path):
        self._first, self._last = steps or (1, 0)
        self._folder, self._on = folder, False
        self.edges = (self._first - 1, self._last) if steps else ()

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call before a step; starts the profile if it is in the window."""
        if not self._on and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, result: object) -> bool:
        """Call after a step with what it computed; returns whether the profile ended and is written."""
        if not self._on or step < self._last:
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
