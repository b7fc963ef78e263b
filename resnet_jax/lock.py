"""A lock file that ends with the process that holds it, however that ends."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from resnet_jax.errors import UserError


@contextlib.contextmanager
def held(path: pathlib.Path, busy: str) -> Iterator[None]:
    """Holds a lock file, which it makes; on a file system without locks it holds nothing.

    Raises:
      UserError: another process holds it; `busy` is the message.
      OSError: it cannot be made.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:
            pass
        yield
