"""Network namespaces: create and remove them, and run commands and callables in them.

A thread may be in another namespace than the rest of its process, and so are the processes and
sockets that it creates. So neither ``ip netns exec`` nor a fork of the threaded test process is
needed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class NetnsError(Exception):
    """A command in a namespace, or for its set-up, failed."""


def enter(handle: int) -> None:
    """Move this thread to the network namespace of an open file.

    Raises:
        OSError: the kernel refused.
    """
    # os.setns() exists only since Python 3.12.
    if _LIBC.setns(handle, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _enter(path: Path) -> None:
    with path.open("rb") as namespace:
        enter(namespace.fileno())


@dataclass(frozen=True, slots=True)
class NetNS:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        """The file that represents the namespace."""
        return RUN / self.name

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread inside the namespace and return what it returns."""
        done: Future[T] = Future()

        def body() -> None:
            try:
                _enter(self.path)
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                done.set_exception(error)

        threading.Thread(target=body, name=f"in {self.name}", daemon=True).start()
        return done.result()

    def run(
        self,
        *command: str,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, its output captured as text.

        Raises:
            NetnsError: it failed (unless ``check`` is false); the message has its stderr.
        """
        done = self.call(
            lambda: subprocess.run(
                command, input=stdin, text=True, capture_output=True, timeout=timeout, check=False
            )
        )
        if check and done.returncode:
            raise NetnsError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done

    def popen(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command; ``output`` is a file descriptor for its stdout and stderr."""
        return self.call(
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                cwd=cwd,
                env=env,
                # Only the main process handles Ctrl-C at the terminal; it ends the others.
                start_new_session=True,
            )
        )

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Set kernel parameters of the namespace; keys are paths below ``/proc/sys/net``."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys/net", key).write_text(value, encoding="ascii")

        self.call(write)


def ip_batch(lines: Iterable[str], netns: str = "", *, force: bool = False) -> None:
    """Run many ``ip`` commands in one process, inside ``netns`` if given.

    With ``force`` a failing line does not stop the others and is not an error.

    Raises:
        NetnsError: a line failed; the message quotes it.
    """
    commands = list(lines)
    where = ["-n", netns] if netns else []
    done = subprocess.run(
        ["ip", *where, *(["-force"] if force else []), "-batch", "-"],
        input="".join(f"{line}\n" for line in commands),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode and not force:
        listing = "\n".join(f"{number}: {line}" for number, line in enumerate(commands, 1))
        raise NetnsError(f"ip -batch in {netns or 'the host'}: {done.stderr.strip()}\n{listing}")


def existing(prefix: str) -> list[str]:
    """The names of the namespaces that begin with ``prefix``."""
    return sorted(path.name for path in RUN.glob(f"{prefix}*")) if RUN.is_dir() else []


def processes_in(names: Iterable[str]) -> list[int]:
    """The ids of the processes in any of the namespaces, without this process."""
    inodes = set()
    for name in names:
        with contextlib.suppress(OSError):
            inodes.add((RUN / name).stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino in inodes:
                    found.append(int(entry.name))
    return found


def remove(names: Sequence[str]) -> None:
    """Kill all processes in the namespaces, then delete them; missing ones are no error."""
    for process in processes_in(names):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    ip_batch((f"netns del {name}" for name in names), force=True)
