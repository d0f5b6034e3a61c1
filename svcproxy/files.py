"""Reads files that others write, up to a size."""

import os
import stat
from pathlib import Path


class UnusableFileError(Exception):
    """A file cannot be used; the message names the reason and the remedy."""


class FileTooLargeError(UnusableFileError):
    """A file exceeds its limit."""


def read_bounded(path: Path, most: int, *, only_regular: bool = False) -> bytes:
    """Read a file of at most ``most`` bytes.

    Args:
        path: the path of the file.
        most: the limit in bytes; at most one byte more is read.
        only_regular: refuse anything but a regular file. Opening a FIFO waits for a writer, and
            opening a device may have side effects.

    Raises:
        UnusableFileError: the file is larger, or not regular although it has to be.
        OSError: it cannot be read.
    """
    if only_regular and not stat.S_ISREG(path.stat().st_mode):
        raise UnusableFileError("is not a regular file: remove it")
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if only_regular else 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if only_regular and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnusableFileError(
                "is not a regular file: remove it"
            )  # replaced since the first check
        data = file.read(most + 1)
    if len(data) > most:
        raise FileTooLargeError(f"is larger than {most} bytes: make it smaller")
    return data
