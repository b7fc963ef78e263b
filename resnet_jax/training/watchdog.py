"""Ends a process of several that waits in vain: when one is gone or hangs, the others would wait for it for ever.

JAX notices that itself after a while, and then aborts with pages of its inner state. This comes first, with one line.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from resnet_jax.errors import EXIT_PEER_LOST

PATIENCE = 5  # for what may take long, as a multiple of the timeout


class Watchdog:
    """A context manager; inside, `beat` must be called at least every `timeout` seconds, from the first call on."""

    def __init__(self, timeout: float | None, end: Callable[[str], None] | None = None):
        """Args: seconds, None: do not watch; what to do then, with the message (the default ends the process)."""
        self._timeout, self._end = timeout, end or _end
        self._due: tuple[float, float] | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._timeout is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def beat(self, patience: float = 1) -> None:
        """There is progress; `patience`: times the timeout until there must be more."""
        if self._timeout is not None:
            self._due = time.monotonic(), patience * self._timeout

    def rest(self) -> None:
        """Nobody watches until the next beat: what comes (compiling) may take any time."""
        self._due = None

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._timeout / 4)):
            if self._due is None:
                continue
            since, limit = self._due
            if time.monotonic() - since > limit:
                self._end(
                    f"no progress for {limit:.0f} s: another process is gone or hangs (its own log says why); "
                    "start all of them again to go on from the last checkpoint"
                )
                return


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER_LOST)  # the main thread is inside XLA and would not hear of an exception
