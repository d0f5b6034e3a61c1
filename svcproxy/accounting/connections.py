"""Open and new connections of frontends, from connection tracking.

Nothing is configured in the kernel, and nothing is read unless it is asked for. Open connections are
counted in a dump of the table, new ones with the events that the kernel sends while a command
listens. Refused and dropped connections have no entry, so they are seen in neither.

In IPVS mode the entries have the original destination too, because svcproxy sets
``net.ipv4.vs.conntrack``.
"""

import contextlib
import selectors
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from svcproxy.accounting.core.activity import Activities
from svcproxy.accounting.core.frontends import FrontendIndex, FrontendKey, frontend_keys
from svcproxy.backends.settings import Settings
from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.conntrack import (
    EVENTS_NEW,
    decode_connection,
    dump_request,
    tcp_state,
)
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import split
from svcproxy.netlink.errors import BufferOverrunError, MalformedError, NetlinkError
from svcproxy.netlink.listener import listening_socket
from svcproxy.netlink.socket import NETFILTER

_TCP = 6
_ENDED = frozenset({7, 8})
"""TIME_WAIT and CLOSE in ``enum tcp_conntrack``: the connection has ended, its entry remains."""
_DATAGRAM_BYTES = 64 << 10
_EVENTS_SWITCH = Path("/proc/sys/net/netfilter/nf_conntrack_events")
_NETLINK_SOCKETS = Path("/proc/thread-self/net/netlink")
_DROPS_COLUMN = 8


class Served(NamedTuple):
    """What one IP family serves: its Service ports, and at which addresses node ports are."""

    ports: Mapping[ServicePortName, ServicePort]
    settings: Settings


class Sample(NamedTuple):
    """The new connections during some time.

    Attributes:
        seconds: how long the sample was taken.
        activities: the new connections of each frontend.
        lost: how many events the kernel dropped because they arrived faster than they were read.
    """

    seconds: float
    activities: Activities
    lost: int


def open_connections(served: Mapping[IPFamily, Served]) -> dict[FrontendKey, int]:
    """Count the open connections of each frontend; those without any are absent.

    TCP connections in the states TIME_WAIT and CLOSE do not count. The table is read as a stream: a
    million entries take no memory.

    Raises:
        ConntrackError: the table could not be read.
    """
    counts: dict[FrontendKey, int] = {}
    for family, about in served.items():
        _count_open(family, index_of(family, about), counts)
    return counts


def _count_open(family: IPFamily, index: FrontendIndex, counts: dict[FrontendKey, int]) -> None:
    def take(body: bytes) -> None:
        found = decode_connection(body)
        if found is None:
            return
        key = index.find(found.protocol, *found.destination)
        if key is not None and not (found.protocol == _TCP and tcp_state(body) in _ENDED):
            counts[key] = counts.get(key, 0) + 1

    try:
        with NetlinkClient(
            NETFILTER, datagram_bytes=_DATAGRAM_BYTES, receive_buffer_bytes=0
        ) as client:
            client.dump_each(dump_request(family, None), take)
    except NetlinkError as error:
        raise ConntrackError(f"cannot list connection tracking entries: {error}") from error


def index_of(family: IPFamily, about: Served) -> FrontendIndex:
    """Return what finds the frontends of a family; it asks the kernel which addresses are its own."""
    is_local = Table(family).is_local
    return FrontendIndex(frontend_keys(family, about.ports), about.settings, is_local)


class ConnectionEvents:
    """Listens to the kernel's events about new connections; for one thread.

    Each new connection costs the kernel some microseconds more while it listens.

    Args:
        served: what is served in each family.
        clock: monotonic seconds.

    Raises:
        ConntrackError: the kernel does not permit listening.
    """

    def __init__(
        self, served: Mapping[IPFamily, Served], clock: Callable[[], float] = time.monotonic
    ) -> None:
        if _events_are_off():
            raise ConntrackError(
                "new connections cannot be seen: set the sysctl"
                " net.netfilter.nf_conntrack_events to 2 (1 before Linux 5.18)"
            )
        self._clock = clock
        self.indexes: dict[IPFamily, FrontendIndex] = {}
        """What finds the frontends of each family."""
        self._by_number: dict[int, FrontendIndex] = {}
        self.serve(served)
        try:
            self._socket = listening_socket(NETFILTER, [EVENTS_NEW])
        except NetlinkError as error:
            message = f"cannot listen to new connections: {error}"
            raise ConntrackError(message) from error
        self._began = clock()
        self._drops = self._dropped()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def fileno(self) -> int:
        """The file descriptor, to wait for events."""
        return self._socket.fileno()

    def serve(self, served: Mapping[IPFamily, Served]) -> None:
        """Count the connections of these Service ports from now on."""
        self.indexes = {family: index_of(family, about) for family, about in served.items()}
        self._by_number = {FAMILY_NUMBERS[f]: index for f, index in self.indexes.items()}

    def sample(self, seconds: float, wakeup: int | None = None) -> Sample:
        """Count new connections for some time, from the end of the previous sample on.

        Args:
            seconds: how long to listen.
            wakeup: a file descriptor that ends the sample when it can be read.

        Raises:
            ConntrackError: the socket failed.
        """
        activities = Activities()
        end = self._clock() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            if wakeup is not None:
                selector.register(wakeup, selectors.EVENT_READ)
            while (left := end - self._clock()) > 0:
                ready = [key.fd for key, _ in selector.select(left)]
                if wakeup is not None and wakeup in ready:
                    break
                self._read(activities, end)
        now, drops = self._clock(), self._dropped()
        found = Sample(now - self._began, activities, max(0, drops - self._drops))
        self._began, self._drops = now, drops
        return found

    def _read(self, activities: Activities, end: float) -> None:
        """Count the events that have arrived, until ``end`` if they do not cease."""
        while self._clock() < end:
            try:
                data = self._socket.receive_queued()
            except BufferOverrunError:
                continue  # their number is read from the socket's drop counter
            except NetlinkError as error:
                raise ConntrackError(f"cannot read new connections: {error}") from error
            if data is None:
                return
            with contextlib.suppress(MalformedError):
                self._take(data, activities)

    def _take(self, data: bytes, activities: Activities) -> None:
        for _, _, _, start, end in split(data):
            body = data[start:end]
            index = self._by_number.get(body[0]) if body else None
            found = decode_connection(body) if index is not None else None
            if index is None or found is None:
                continue
            key = index.find(found.protocol, *found.destination)
            if key is not None:
                activities.add(key, found.client, found.endpoint)

    def _dropped(self) -> int:
        """Return how many events the kernel has dropped for this socket (``netlink_seq_show``)."""
        wanted = str(self._socket.port_id)
        try:
            lines = _NETLINK_SOCKETS.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            return 0
        for words in map(str.split, lines):
            if words[1] == str(NETFILTER) and words[2] == wanted:
                return int(words[_DROPS_COLUMN])
        return 0


def _events_are_off() -> bool:
    try:
        return _EVENTS_SWITCH.read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def sample(served: Mapping[IPFamily, Served], seconds: float) -> Sample:
    """Listen to new connections for some time.

    Raises:
        ConntrackError: the kernel does not permit it.
    """
    with ConnectionEvents(served) as events:
        return events.sample(seconds)
