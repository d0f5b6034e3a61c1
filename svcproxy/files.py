"""Reads files of other programs, up to a size limit."""

import os
import stat
from pathlib import Path


class UnusableFileError(Exception):
    """A file cannot be used; the message names the reason and the remedy."""


class FileTooLargeError(UnusableFileError):
    """A file exceeds its limit."""


def read_bounded(path: Path, limit: int, *, only_regular: bool = False) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Args:
        path: the path of the file.
        limit: the size limit in bytes; at most one byte more is read.
        only_regular: refuse other files than regular ones. Opening a FIFO blocks until there is a
            writer, and opening a device may have side effects.

    Raises:
        UnusableFileError: the file exceeds the limit, or is not regular although it must be.
        OSError: the file cannot be read.
    """
    if only_regular and not stat.S_ISREG(path.stat().st_mode):
        raise UnusableFileError("is not a regular file: remove it")
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if only_regular else 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if only_regular and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnusableFileError(
                "is not a regular file: remove it"
            )  # replaced since the first check
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FileTooLargeError(f"is larger than {limit} bytes: make it smaller")
    return data
