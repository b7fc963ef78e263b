"""The one exception for what a user can mend; `train.py` and `eval.py` print it as one line."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do."""


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C); its state is saved."""


# Exit codes of train.py. 75 is EX_TEMPFAIL of sysexits.h: "try again later", which is what to do after a stop.
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75
EXIT_PEER_LOST = 76  # of several processes, another one is gone or hangs; all end, and can be started again
EXIT_INTERRUPTED = 130  # Ctrl-C before the first step or after the last, or a second one: as shells say it


def user_error_in(error: BaseException | None) -> UserError | None:
    """Finds a `UserError` in a chain of causes (a data worker's error arrives wrapped in its library's)."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line and an exit code, instead of a traceback, for a `UserError` or a stop."""
    try:
        yield
    except Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        found = user_error_in(error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
