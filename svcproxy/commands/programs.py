"""Runs programs with limits on their time and output."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO, NamedTuple

from svcproxy.priority import reading_the_kernel

_ERROR_BYTES = 16 << 10


class Finished(NamedTuple):
    """A program that has ended.

    Attributes:
        code: its exit code; negative if it was killed.
        stdout: the begin of its output.
        stderr: the begin of its errors.
        timed_out: whether it was killed because it took too long.
        cut: whether it was killed because it wrote too much.
    """

    code: int
    stdout: bytes
    stderr: str
    timed_out: bool = False
    cut: bool = False


def run_bounded(command: Sequence[str], *, seconds: float, limit: int) -> Finished:
    """Run a program without input.

    Args:
        command: the program and its arguments.
        seconds: when to kill it.
        limit: how many bytes of output to read; it is killed if there are more.

    Raises:
        OSError: it cannot be started.
    """
    with reading_the_kernel():  # most of these programs do
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that what it has started can be killed with it
        )
    errors: list[bytes] = []
    expired = threading.Event()
    timer = threading.Timer(seconds, _expire, (process, expired))
    reader = threading.Thread(target=lambda: errors.append(_read(process.stderr, _ERROR_BYTES)))
    with process:
        timer.start()
        reader.start()
        try:
            data = _read(process.stdout, limit + 1)
            if len(data) > limit:
                _kill(process)
            reader.join()
            code = process.wait()
        except BaseException:
            _kill(process)
            raise
        finally:
            timer.cancel()
    text = b"".join(errors).decode("utf-8", "replace")
    return Finished(code, data[:limit], text, expired.is_set(), len(data) > limit)


def _expire(process: "subprocess.Popen[bytes]", expired: threading.Event) -> None:
    expired.set()
    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a program and what it has started. Its ID is not reused before it is waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(stream: IO[bytes] | None, limit: int) -> bytes:
    """Read up to a limit; a program that writes more is blocked until it is killed."""
    assert stream is not None
    return stream.read(limit)
