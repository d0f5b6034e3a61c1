"""Noticing that the node got or lost an address."""

from collections.abc import Callable

import structlog

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs import link_messages
from svcproxy.backends.ipvs.failing import failed
from svcproxy.backends.ipvs.values import DUMMY_INTERFACE
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import messages
from svcproxy.netlink.errors import MalformedError
from svcproxy.netlink.listener import Listener, listening_socket
from svcproxy.netlink.socket import ROUTE
from svcproxy.refusals import REFUSALS

log = structlog.get_logger()

_GROUPS = (link_messages.LINK_GROUP, link_messages.IPV4_GROUP, link_messages.IPV6_GROUP)


class AddressWatcher:
    """A thread that calls ``on_change`` when an address comes or goes, except on ``kube-ipvs0``.

    Args:
        on_change: called in the watcher's thread, once for events that came together, and when
            events were lost.

    Raises:
        BackendError: the kernel does not let us listen.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._follower = link_messages.Follower(DUMMY_INTERFACE)
        try:
            listening = listening_socket(ROUTE, _GROUPS)
        except OSError as error:
            raise failed("listen to changes of addresses", error) from error
        self._listener = Listener(listening, self._read, "address-watcher")
        try:
            self._look_around()
        except MalformedError as error:
            self.stop()
            raise BackendError(f"cannot understand the list of interfaces: {error}") from error
        except OSError as error:
            self.stop()
            raise failed("listen to changes of addresses", error) from error

    def start(self) -> None:
        """Start the thread; what has happened since the constructor is reported first."""
        self._listener.start()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._listener.stop()

    def _look_around(self) -> None:
        client = NetlinkClient(ROUTE)
        try:
            links = client.dump(link_messages.links_request())
        finally:
            client.close()
        self._follower.know(link_messages.decode_links(links))

    def _read(self) -> None:
        changed = lost = False
        for data in self._listener.received():
            try:
                if data is None:
                    lost = True
                else:
                    changed = self._follower.concerns(messages(data)) or changed
            except MalformedError:
                REFUSALS.count("netlink", "malformed")
                lost = True
        try:
            if lost:
                self._look_around()
        except (OSError, MalformedError) as error:
            log.warning("address_watcher.failed", error=str(error))
        finally:
            if changed or lost:
                self._on_change()
