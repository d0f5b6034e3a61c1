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
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import rtnetlink, veth
from svcproxy.netlink.core.addresses import packed
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.socket import ROUTE
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
    with NetlinkClient(ROUTE) as node:
        with contextlib.suppress(NetlinkError):
            node.dump(rtnetlink.links_request())  # numbers the namespaces of pods
        found = _in_thread(lambda: _search(address, node))
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


def _search(address: str, node: NetlinkClient) -> int | None:
    """Return the namespace that has the address; one that is connected to the node comes first.

    A pod can make namespaces of its own, with any addresses. They are not connected to the node.

    Args:
        address: the address.
        node: a socket in the node's namespace.
    """
    search = _Search(address)
    unrelated = []
    for path, opened in _candidates():
        if _is_related(node, opened):
            if search.found(opened):
                return opened
        else:
            unrelated.append(path)
        os.close(opened)
    for path in unrelated:
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if search.found(opened):
                return opened
            os.close(opened)
    if search.refused:
        raise NotSentError(
            f"the kernel does not let this process enter {search.refused} network namespaces: run"
            " as root with CAP_SYS_ADMIN (in a pod: privileged: true)"
        )
    return None


class _Search:
    """Enters namespaces, one after the other.

    Attributes:
        refused: how many the kernel did not let the thread enter.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.refused = 0

    def found(self, opened: int) -> bool:
        """Return whether a namespace has the address."""
        try:
            enter(opened)
        except OSError:
            self.refused += 1
            return False
        return is_own(self._address)


def _is_related(node: NetlinkClient, opened: int) -> bool:
    try:
        return veth.is_related(node.get(veth.namespace_id_request(opened)).body)
    except NetlinkError:
        return True  # unknown


def _candidates() -> Iterator[tuple[Path, int]]:
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
            yield path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)


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
