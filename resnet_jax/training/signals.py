"""SIGTERM and Ctrl-C: noted in training, so that the loop can save first; while XLA compiles they end the program."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from resnet_jax.errors import EXIT_STOPPED, Stopped


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can save first; a second one stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self, when: str) -> Iterator[None]:
        """Inside, a signal ends the program at once: no handler of Python's runs while XLA compiles."""
        if self.requested():
            raise Stopped(f"stopped by {self.name} {when}; run the same command again to go on")
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)

        def watch() -> None:
            while number := reader.recv(1):  # each signal's number, from Python's own C handler
                if number[0] in (signal.SIGTERM, signal.SIGINT):
                    name = signal.Signals(number[0]).name
                    print(f"stopped by {name} {when}; run the same command again to go on", file=sys.stderr, flush=True)
                    os._exit(EXIT_STOPPED)

        with reader, writer:
            previous = signal.set_wakeup_fd(writer.fileno())
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous)
                writer.shutdown(socket.SHUT_WR)
                thread.join()

    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None
