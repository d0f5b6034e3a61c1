"""Detects changes to svcproxy's tables by other processes."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from threading import Lock

import structlog

from svcproxy.backends.base import BackendError, ExternalChange
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.nf_tables.events import (
    EventParser,
    Relevance,
    TransactionEvent,
    all_in_tables,
    originator_filter,
)
from svcproxy.netlink.core.nf_tables.protocol import EVENT_GROUP
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.listener import Listener, listening_socket
from svcproxy.netlink.socket import NETFILTER

LOST = "unknown"
"""The process name in a report of lost events."""

_OWN_TABLES = all_in_tables((TABLE,))

log = structlog.get_logger()


class NftablesWatcher:
    """A thread that listens to nf_tables events and reports changes by other processes.

    Our own changes are recognized by the netlink address they come from, not by the process: the
    kernel names processes by their numbers in the initial pid namespace, which are not visible in a
    container. The kernel drops these events before they reach our socket, so a large transaction of
    svcproxy costs no time and cannot overflow the buffer. Changes by a program that we run cannot be
    recognized like this; see ``own``.

    Args:
        on_external_change: called in the watcher's thread after each transaction of another process
            that the judge deems relevant. It is called with the process ``LOST`` when events were
            lost: then anything may have changed.
        own_ports: the netlink addresses of our own sockets (``NftablesBackend.port_id``).
        families: the families of the tables.
        judge: decides which changes are relevant; by default all those of svcproxy's own tables.
        ignored_sets: the names of sets whose elements packets add; their changes are not relevant.

    Raises:
        BackendError: the kernel does not permit listening.
    """

    def __init__(
        self,
        on_external_change: Callable[[ExternalChange], None],
        own_ports: Collection[int] = (),
        families: Collection[IPFamily] = tuple(IPFamily),
        judge: Relevance = _OWN_TABLES,
        ignored_sets: Collection[str] = (),
    ) -> None:
        self._on_external_change = on_external_change
        self._changes = EventParser(
            judge, [FAMILY_NUMBERS[family] for family in families], ignored_sets
        )
        self._lock = Lock()
        self._own: set[int] = set()
        try:
            listening = listening_socket(
                NETFILTER, [EVENT_GROUP], originator_filter(own_ports) if own_ports else b""
            )
        except NetlinkError as error:
            raise BackendError(f"cannot listen to nf_tables events: {error}") from error
        self._listener = Listener(listening, self._read_all, "nftables-watcher")

    def start(self) -> None:
        """Start the thread; changes since the constructor are reported first."""
        self._listener.start()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._listener.stop()

    @contextlib.contextmanager
    def own(self, start: Callable[[], int]) -> Iterator[None]:
        """Treat the changes of a program that we run as our own.

        The first netlink socket of a program has the program's process number as its address, as
        seen in our pid namespace (``netlink_autobind``). When the context ends, the program has
        ended and all its events have been sent; they are read here.

        Args:
            start: starts the program and returns its process number. No event is judged meanwhile.
        """
        with self._lock:
            port = start()
            self._own.add(port)
        try:
            yield
        finally:
            with self._lock:
                self._read()
                self._own.discard(port)

    def _read_all(self) -> None:
        with self._lock:
            self._read()

    def _read(self) -> None:
        """Process all events that have arrived."""
        for data in self._listener.received():
            if data is None:
                self._changes.forget()
                self._report(ExternalChange(LOST, 0))
            else:
                for change in self._changes.take(data, self._own):
                    self._report(_external_change(change))

    def _report(self, change: ExternalChange) -> None:
        try:
            self._on_external_change(change)
        except Exception:
            log.exception("nftables.watcher_failed")


def _external_change(change: TransactionEvent) -> ExternalChange:
    families = frozenset(f for f, number in FAMILY_NUMBERS.items() if number in change.families)
    return ExternalChange(change.process, change.pid, change.certain, families)
