"""Reading files that others write, of which nothing is known but the path."""

import os
import stat
from pathlib import Path


class UnfitFileError(Exception):
    """A file is not read; the message says why, and what to do."""


class TooLargeError(UnfitFileError):
    """A file exceeds its limit."""


def read_bounded(path: Path, most: int, *, only_regular: bool = False) -> bytes:
    """Read a file that may not be larger than ``most`` bytes.

    Args:
        path: where it is.
        most: the limit, in bytes; no more than one byte above it is ever read.
        only_regular: refuse what is no regular file. To open a FIFO would wait for a writer, and
            to open a device may do anything.

    Raises:
        UnfitFileError: it is larger, or no regular file where only such a one will do.
        OSError: it cannot be read.
    """
    if only_regular and not stat.S_ISREG(path.stat().st_mode):
        raise UnfitFileError("is no regular file: remove it")
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if only_regular else 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if only_regular and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnfitFileError("is no regular file: remove it")  # exchanged since we looked
        data = file.read(most + 1)
    if len(data) > most:
        raise TooLargeError(f"is larger than {most} bytes: make it smaller")
    return data
