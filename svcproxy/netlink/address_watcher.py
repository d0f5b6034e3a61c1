"""Watching the node's own addresses over rtnetlink."""

from collections.abc import Callable

import structlog

from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import rtnetlink
from svcproxy.netlink.core.messages import messages
from svcproxy.netlink.errors import MalformedError, NetlinkError, doing
from svcproxy.netlink.listener import Listener, listening_socket
from svcproxy.netlink.socket import ROUTE
from svcproxy.refusals import REFUSALS

log = structlog.get_logger()

_GROUPS = (rtnetlink.LINK_GROUP, rtnetlink.IPV4_GROUP, rtnetlink.IPV6_GROUP)


class AddressWatcher:
    """A thread that reports added and removed addresses of the node.

    Args:
        ignored: the name of the interface whose addresses are not reported.
        on_change: called in the watcher's thread, once for all events that are read together, and
            after the kernel has dropped events.

    Raises:
        NetlinkError: the kernel does not let the process listen.
    """

    def __init__(self, ignored: str, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._filter = rtnetlink.AddressEventFilter(ignored)
        with doing("listen to address changes"):
            listening = listening_socket(ROUTE, _GROUPS)
        self._listener = Listener(listening, self._read, "address-watcher")
        try:
            with doing("listen to address changes"):
                self._list_interfaces()
        except NetlinkError:
            self.stop()
            raise

    def start(self) -> None:
        """Start the thread; it first reports changes since the constructor ran."""
        self._listener.start()

    def stop(self) -> None:
        """Stop the thread and close its socket."""
        self._listener.stop()

    def _list_interfaces(self) -> None:
        with NetlinkClient(ROUTE) as client:
            links = client.dump(rtnetlink.links_request())
        self._filter.set_interfaces(rtnetlink.decode_links(links))

    def _read(self) -> None:
        changed = lost = False
        for data in self._listener.received():
            try:
                if data is None:
                    lost = True
                else:
                    changed = self._filter.is_relevant(messages(data)) or changed
            except MalformedError:
                REFUSALS.count("netlink", "malformed")
                lost = True
        try:
            if lost:
                self._list_interfaces()
        except NetlinkError as error:
            log.warning("address_watcher.failed", error=str(error))
        finally:
            if changed or lost:
                self._on_change()
