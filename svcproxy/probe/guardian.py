"""A process that removes what the probe's packets leave in the kernel, also if the prober is killed.

It is forked before the first packet is sent, into a session of its own, and ignores signals. It
keeps no descriptor of the prober but a pipe, and waits until the prober's end of it is closed: on
purpose, or because the prober has ended. Then it removes the entries and exits. So there is one way
of cleaning up, and the ordinary case tests it.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from svcproxy.probe import affinity, entries, namespaces
from svcproxy.probe.core.affinity import AffinityEntry
from svcproxy.probe.core.entry import Entry, Tuple

_SETTLE_SECONDS = 0.1
"""How long packets that were under way may still make an entry."""
_ROUNDS = 10
_REPORT_SECONDS = 10.0
_REPORT_BYTES = 4096
_PROBLEMS = 8
_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class Estate(msgspec.Struct, frozen=True):
    """What is to be removed after the probe.

    Attributes:
        sent: the probe; its connection tracking entry is deleted.
        namespaces: descriptors of further network namespaces that track the probe's connection.
        affinity: entries of session affinity that did not exist before.
        lock: a descriptor that keeps other probes with session affinity waiting; -1 for none.
    """

    sent: Tuple
    namespaces: Sequence[int] = ()
    affinity: Sequence[AffinityEntry] = ()
    lock: int = -1


class Guardian:
    """The process.

    Args:
        estate: what to remove.

    Raises:
        OSError: no process or descriptor is free.
    """

    def __init__(self, estate: Estate) -> None:
        waiting, self._alive = os.pipe2(os.O_CLOEXEC)
        self._report, reporting = os.pipe2(os.O_CLOEXEC)
        # A signal to the whole process group must not end the process before it ignores signals.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            self._process = os.fork()
            if not self._process:
                _live(estate, waiting, reporting)
        except OSError:
            os.close(self._alive)
            os.close(self._report)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(waiting)
            os.close(reporting)

    def finish(self) -> list[str]:
        """Let the process remove everything, and wait for its end.

        The probe's socket must be closed before.

        Returns:
            What could not be removed, with the reason.
        """
        os.close(self._alive)
        found = b""
        deadline = time.monotonic() + _REPORT_SECONDS
        try:
            while select.select((self._report,), (), (), max(0.0, deadline - time.monotonic()))[0]:
                data = os.read(self._report, _REPORT_BYTES)
                if not data:
                    os.waitpid(self._process, 0)
                    return found.decode(errors="replace").splitlines()
                found += data
        finally:
            os.close(self._report)
        return [f"process {self._process} is still removing what the probe left"]


def _live(estate: Estate, waiting: int, reporting: int) -> None:
    """Be the guardian: wait, remove, report, and exit."""
    try:
        os.setsid()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _close_others({waiting, reporting, *estate.namespaces, estate.lock})
        while os.read(waiting, 1):
            pass
        problems = clean(estate)
        text = "\n".join(" ".join(problem.split()) for problem in problems[:_PROBLEMS])
        with contextlib.suppress(OSError):  # the prober may have been killed
            os.write(reporting, text.encode()[:_REPORT_BYTES])
    finally:
        os._exit(0)


def _close_others(kept: set[int]) -> None:
    """Close all descriptors but some: they hold the prober's namespace, socket and table."""
    void = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(void, standard)
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def clean(estate: Estate) -> list[str]:
    """Remove everything; return what could not be removed, with the reason."""
    problems: list[str] = []

    def attempt(what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            problems.append(f"{what}: {error}")

    attempt("connection tracking entry", lambda: _remove_entry(estate.sent))
    for namespace in estate.namespaces:
        attempt(
            "connection tracking entry of the pod",
            lambda opened=namespace: namespaces.within(opened, lambda: _remove_entry(estate.sent)),  # type: ignore[misc]
        )
    if estate.affinity:
        attempt("session affinity", lambda: affinity.remove(estate.affinity))
    return problems


def _remove_entry(sent: Tuple) -> None:
    """Delete the entry until none is left and no late packet has made another one."""
    known: Entry | None = None
    for _ in range(_ROUNDS):
        found = entries.read(sent)
        if found is None and known is not None:
            found = entries.read_reversed(sent, known)
        if found is not None:
            known = known or found
            entries.remove(sent, found)
        time.sleep(_SETTLE_SECONDS)
        if found is None and entries.read(sent) is None:
            return
