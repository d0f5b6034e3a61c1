"""Network namespaces: finding that of a pod, making a temporary one, and working in them.

A namespace without a name exists as long as a process or a descriptor refers to it. A thread
enters it, and the sockets that the thread opens stay in it.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.limits import PROBE_NAMESPACES, PROBE_PROCESSES
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import packed
from svcproxy.probe.errors import NotSentError

T = TypeVar("T")

_NEW_NETWORK = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_OWN = "/proc/thread-self/ns/net"
_NAMED = Path("/run/netns")
_PROCESSES = Path("/proc")


def within(namespace: int | None, work: Callable[[], T]) -> T:
    """Do something in a network namespace, in a thread; return the result or raise the error.

    Args:
        namespace: a descriptor of the namespace; ``None`` for that of the caller.
        work: what to do.
    """
    if namespace is None:
        return work()

    def entered() -> T:
        enter(namespace)
        return work()

    return _in_thread(entered)


def enter(namespace: int) -> None:
    """Move the calling thread to another network namespace.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_LIBC.setns(namespace, _NEW_NETWORK))


def temporary() -> int:
    """Make a network namespace and return a descriptor of it; it ends with the last descriptor.

    Raises:
        OSError: the kernel refused.
    """

    def make() -> int:
        _checked(_LIBC.unshare(_NEW_NETWORK))
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(make)


def find(address: str) -> int:
    """Return a descriptor of the network namespace, other than this one, that has an address.

    Namespaces are found through the processes in them and in ``/run/netns``.

    Raises:
        NotSentError: there is none that this process can see and enter.
    """
    found = _in_thread(lambda: _search(address))
    if found is None:
        raise NotSentError(
            f"no network namespace on this node has the address {address}: for a pod on this node,"
            " run as root where its processes are visible (on the node, or in a pod with hostPID:"
            " true or with the node's /run/netns); for one on another node, run it there; for a"
            " client outside the cluster, probe from outside"
        )
    return found


@contextlib.contextmanager
def opened(address: str) -> Iterator[int]:
    """Like ``find``, for a ``with`` statement that closes the descriptor.

    Raises:
        NotSentError: as ``find``.
    """
    found = find(address)
    try:
        yield found
    finally:
        os.close(found)


def is_own(address: str) -> bool:
    """Return whether the caller's network namespace has an address."""
    family = IPFamily.IPV6 if ":" in address else IPFamily.IPV4
    with contextlib.suppress(ConntrackError):
        return Table(family).is_local(packed(address))
    return False


def _search(address: str) -> int | None:
    refused = 0
    for opened in _candidates():
        try:
            enter(opened)
        except OSError:
            refused += 1
        else:
            if is_own(address):
                return opened
        os.close(opened)
    if refused:
        raise NotSentError(
            f"the kernel does not let this process enter {refused} network namespaces: run as"
            " root with CAP_SYS_ADMIN (in a pod: privileged: true)"
        )
    return None


def _candidates() -> Iterator[int]:
    """Open each namespace that this process can see, except its own; each once."""
    seen = {(os.stat(_OWN).st_dev, os.stat(_OWN).st_ino)}  # noqa: PTH116 - a magic link
    for path in _paths():
        with contextlib.suppress(OSError):
            about = path.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            if len(seen) > PROBE_NAMESPACES:
                return
            seen.add((about.st_dev, about.st_ino))
            yield os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _paths() -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(_PROCESSES) as entries:
        numbers = (entry.name for entry in entries if entry.name.isdecimal())
        for _, number in zip(range(PROBE_PROCESSES), numbers, strict=False):
            yield _PROCESSES / number / "ns/net"
    with contextlib.suppress(OSError), os.scandir(_NAMED) as entries:
        for _, entry in zip(range(PROBE_NAMESPACES), entries, strict=False):
            yield _NAMED / entry.name


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="in another network namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
