"""Running iptables-save and iptables-restore."""

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
"""What is kept of a program's error messages."""
_BUSY = 4  # RESOURCE_PROBLEM, also given for what the kernel refuses through nf_tables


TrackProcess = Callable[[Callable[[], int]], AbstractContextManager[None]]
"""Makes the context in which a program runs: on entry it calls the function that starts the process
and returns its number; it is left when the process has ended."""


@contextmanager
def untracked(start: Callable[[], int]) -> Iterator[None]:
    """Start a process that nobody has to know of."""
    start()
    yield


class Variant(StrEnum):
    """The two implementations of iptables; a node's rules live in one of them."""

    NFT = "nft"
    LEGACY = "legacy"


class Iptables:
    """The iptables programs of one variant and family.

    The programs are looked up once. A system without variant-specific names (``iptables-nft``)
    has only one variant, under the plain name.
    """

    def __init__(self, variant: Variant, family: IPFamily) -> None:
        self.variant = variant
        self.family = family
        self._list = _find(variant, family, "")
        self._save = _find(variant, family, "-save")
        self._restore = _find(variant, family, "-restore")
        self.track_process: TrackProcess = untracked

    def save(self, *tables: str) -> str:
        """Read tables, all when none is named.

        Raises:
            BackendError: iptables-save failed; the message is its own.
        """
        commands = [[self._save, "-t", table] for table in tables] or [[self._save]]
        return "".join(_run(command, None).stdout for command in commands)

    def chain(self, table: str, chain: str) -> str:
        """List the rules of one chain, which costs little; nothing if it cannot be listed.

        What iptables says of a chain that does not exist differs between versions and variants,
        so that is not told from other failures.
        """
        command = [self._list, "-w", str(_LOCK_WAIT_SECONDS), "-t", table, "-S", chain]
        done = _run(command, None, check=False)
        return "" if done.returncode else done.stdout

    def restore(self, text: str) -> None:
        """Apply a restore input without flushing what it does not name.

        Each table in it is one transaction. The nft variant ignores the lock's waiting time:
        its transactions need no lock.

        Raises:
            RestoreRefused: nothing of the failing table was applied; the message holds the line
                that iptables complains about.
            BackendError: nothing of the failing table was applied, whatever the input was: the
                lock was not free within 5 s, or the program could not run.
        """
        command = [self._restore, "--noflush", "-w", str(_LOCK_WAIT_SECONDS)]
        done = _run(command, text, check=False, track_process=self.track_process)
        if done.returncode:
            failure = refusal(self._restore, done.stderr, text)
            # It was killed, or could not get the lock: the input is not the cause.
            if done.returncode < 0 or (done.returncode == _BUSY and not failure.lines):
                raise TransactionError(str(failure))
            raise failure

    def accepts(self, table: str, *matches: str) -> bool:
        """Try a rule with each match in a chain that nothing refers to, and remove it again.

        Raises:
            BackendError: not even the chain can be removed: the table cannot be written.
        """
        chain = f"*{table}\n:{_PROBE_CHAIN} - [0:0]\n"
        rules = "".join(f"-A {_PROBE_CHAIN} {match}\n" for match in matches)
        # Naming a chain flushes it.
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
    """Feed a process and wait for its end; it is killed if it fails to end.

    Output is decoded here, not by ``Popen``: comments of foreign rules may not be UTF-8, and
    Python's text mode would treat a carriage return in a comment as the end of a line.

    Raises:
        BackendError: it took too long or printed too much.
    """
    sent = b"" if text is None else text.encode(*ENCODING)
    with process:
        try:
            output, errors = _exchange(process, command[0], sent)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(
        command, process.returncode, output.decode(*ENCODING), errors.decode(errors="replace")
    )


def _exchange(
    process: subprocess.Popen[bytes], program: str, sent: bytes
) -> tuple[bytearray, bytearray]:
    """Give a process its input and collect its output, within the limits on time and size."""
    deadline = time.monotonic() + IPTABLES_PROGRAM_SECONDS
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()
    rest = memoryview(sent)
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
                    rest = _give(process.stdin, rest)
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

    ``Popen.wait`` with a time-out would look for it in steps of half a millisecond and more, which
    is noticed in every change: a program's output ends a moment before the program itself.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    try:
        ending = os.pidfd_open(process.pid)
    except OSError:  # before Linux 5.3, or forbidden
        process.wait(seconds)
        return
    try:
        poll = select.poll()
        poll.register(ending, select.POLLIN)
        if not poll.poll(math.ceil(seconds * 1000)):
            raise subprocess.TimeoutExpired(process.args, seconds)
    finally:
        os.close(ending)
    process.wait()


def _give(pipe: IO[bytes], rest: memoryview) -> memoryview:
    """Write a piece of the input; if the program has closed its end, its stderr says why."""
    try:
        return rest[os.write(pipe.fileno(), rest[:_PIECE_BYTES]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _explain(program: str, stderr: str) -> str:
    """One line: what a program said."""
    return f"{program}: {' '.join(stderr.split())[:500] or 'failed without a message'}"
