"""Runs iptables, iptables-save and iptables-restore."""

import math
import os
import select
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import IO

from svcproxy.backends.base import BackendError, BackendUnavailable, TransactionError
from svcproxy.backends.xtables.core.restoretext import ENCODING, refusal
from svcproxy.descriptors import DESCRIPTOR_LIMIT
from svcproxy.limits import IPTABLES_PROGRAM_SECONDS, IPTABLES_SAVE_BYTES
from svcproxy.model.names import IPFamily

_PROBE_CHAIN = "KUBE-SVC-PROBE"
_LOCK_WAIT_SECONDS = 5
_PIECE_BYTES = 1 << 18
_ERROR_BYTES = 1 << 16
"""How much of a program's error output is kept."""
_BUSY = 4  # RESOURCE_PROBLEM, also the exit status when nf_tables refuses a transaction


TrackProcess = Callable[[Callable[[], int]], AbstractContextManager[None]]
"""Returns the context in which a program runs.

On entry the context calls its argument, which starts the process and returns the process ID. The
context is left when the process has ended."""


@contextmanager
def untracked(start: Callable[[], int]) -> Iterator[None]:
    """Start a process whose changes need not be recognised as svcproxy's own."""
    start()
    yield


class Variant(StrEnum):
    """The two implementations of iptables; a node's rules should be in one of them."""

    NFT = "nft"
    LEGACY = "legacy"


class Iptables:
    """The iptables programs of one variant and family.

    The programs are searched in PATH once. A system without variant-specific names
    (``iptables-nft``) has only one variant, under the plain name.
    """

    def __init__(self, variant: Variant, family: IPFamily) -> None:
        self.variant = variant
        self.family = family
        self._list = _find(variant, family, "")
        self._save = _find(variant, family, "-save")
        self._restore = _find(variant, family, "-restore")
        self.track_process: TrackProcess = untracked

    def save(self, *tables: str) -> str:
        """Return the output of iptables-save for some tables; for all tables by default.

        Raises:
            BackendError: iptables-save failed; the text holds its error message.
        """
        commands = [[self._save, "-t", table] for table in tables] or [[self._save]]
        return "".join(_run(command, None).stdout for command in commands)

    def list_chain(self, table: str, chain: str) -> str:
        """Return the rules of one chain, which is cheap; empty if listing fails.

        The error for a chain that does not exist differs between versions and variants, so it is
        not distinguished from other errors.
        """
        command = [self._list, "-w", str(_LOCK_WAIT_SECONDS), "-t", table, "-S", chain]
        done = _run(command, None, check=False)
        return "" if done.returncode else done.stdout

    def restore(self, text: str) -> None:
        """Apply a restore input without flushing other chains.

        Each table of the input is one transaction. The legacy variant waits up to 5 s for the
        xtables lock; the nft variant needs no lock.

        Raises:
            RestoreRefused: the contents of the input were refused. Nothing of the failing table was
                applied; the text holds the line that iptables named.
            BackendError: the restore failed for another reason, such as the lock. Nothing of the
                failing table was applied.
        """
        command = [self._restore, "--noflush", "-w", str(_LOCK_WAIT_SECONDS)]
        done = _run(command, text, check=False, track_process=self.track_process)
        if done.returncode:
            failure = refusal(self._restore, done.stderr, text)
            # The program was killed or did not get the lock: the input is not the cause.
            if done.returncode < 0 or (done.returncode == _BUSY and not failure.lines):
                raise TransactionError(str(failure))
            raise failure

    def accepts(self, table: str, *matches: str) -> bool:
        """Whether iptables accepts a rule for each match, in an unused chain that is then deleted.

        Raises:
            BackendError: deleting the chain failed as well: the table cannot be written.
        """
        chain = f"*{table}\n:{_PROBE_CHAIN} - [0:0]\n"
        rules = "".join(f"-A {_PROBE_CHAIN} {match}\n" for match in matches)
        # Declaring a chain flushes it.
        removal = f"{chain}-X {_PROBE_CHAIN}\nCOMMIT\n"
        try:
            self.restore(f"{chain}{rules}COMMIT\n{removal}")
        except BackendError:
            self.restore(removal)
            return False
        return True


def _find(variant: Variant, family: IPFamily, action: str) -> str:
    base = "ip6tables" if family is IPFamily.IPV6 else "iptables"
    path = shutil.which(f"{base}-{variant}{action}")
    if path:
        return path
    plain = shutil.which(f"{base}{action}")
    if plain and _plain_variant(plain) is variant:
        return plain
    raise BackendUnavailable(
        f"{base}-{variant}{action} not found in PATH: install the iptables package"
        " (Debian: apt-get install iptables)"
    )


def _plain_variant(program: str) -> Variant:
    done = _run([program, "--version"], None, check=False)
    return Variant.NFT if "nf_tables" in done.stdout else Variant.LEGACY


def _run(
    command: list[str],
    text: str | None,
    *,
    check: bool = True,
    track_process: TrackProcess = untracked,
) -> subprocess.CompletedProcess[str]:
    process: subprocess.Popen[bytes] | None = None

    def start() -> int:
        nonlocal process
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        DESCRIPTOR_LIMIT.restore_in(process.pid)
        return process.pid

    try:
        with track_process(start):
            assert process is not None
            done = _finish(process, command, text)
    except OSError as error:
        raise BackendError(f"{command[0]}: {error.strerror}") from error
    if check and done.returncode:
        raise BackendError(_explain(command[0], done.stderr))
    return done


def _finish(
    process: subprocess.Popen[bytes], command: list[str], text: str | None
) -> subprocess.CompletedProcess[str]:
    """Write a process's input, collect its output and wait for its end; kill it on any error.

    ``Popen`` does not decode the output, because comments of other programs' rules may not be
    UTF-8, and Python's text mode would treat a carriage return in a comment as a line end.

    Raises:
        BackendError: the process took too long or printed too much.
    """
    data = b"" if text is None else text.encode(*ENCODING)
    with process:
        try:
            output, errors = _exchange(process, command[0], data)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(
        command, process.returncode, output.decode(*ENCODING), errors.decode(errors="replace")
    )


def _exchange(
    process: subprocess.Popen[bytes], program: str, data: bytes
) -> tuple[bytearray, bytearray]:
    """Write the input and collect the output, within the limits on time and size."""
    deadline = time.monotonic() + IPTABLES_PROGRAM_SECONDS
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()
    rest = memoryview(data)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, errors)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            if not ready:
                raise BackendError(f"{program} did not end within {IPTABLES_PROGRAM_SECONDS} s")
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _write_some(process.stdin, rest)
                    done = not rest
                else:
                    done = not (piece := os.read(key.fd, _PIECE_BYTES))
                    if key.data is output or len(errors) < _ERROR_BYTES:
                        key.data.extend(piece)
                if done:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            if len(output) > IPTABLES_SAVE_BYTES:
                raise BackendError(f"{program} printed more than {IPTABLES_SAVE_BYTES} bytes")
    try:
        _wait(process, max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{program} did not end within {IPTABLES_PROGRAM_SECONDS} s") from error
    return output, errors


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end of a process.

    A program closes its output a moment before it exits. ``Popen.wait`` with a time-out would poll
    in steps of at least 0.5 ms, which would delay every sync.

    Raises:
        subprocess.TimeoutExpired: the process did not end in time.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:  # before Linux 5.3, or not permitted
        process.wait(seconds)
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(math.ceil(seconds * 1000)):
            raise subprocess.TimeoutExpired(process.args, seconds)
    finally:
        os.close(pidfd)
    process.wait()


def _write_some(pipe: IO[bytes], rest: memoryview) -> memoryview:
    """Write part of the input and return the rest; empty if the program closed its input."""
    try:
        return rest[os.write(pipe.fileno(), rest[:_PIECE_BYTES]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _explain(program: str, stderr: str) -> str:
    """Return a program's error output as one line."""
    return f"{program}: {' '.join(stderr.split())[:500] or 'failed without a message'}"
