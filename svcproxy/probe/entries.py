"""The connection tracking entry of the probe: reading and deleting it, and the event of its birth."""

import contextlib
import errno
from types import TracebackType
from typing import Self

from svcproxy.model.names import Protocol
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import NetlinkRequest, messages
from svcproxy.netlink.errors import MalformedError, NetlinkError, RequestRefusedError
from svcproxy.netlink.listener import listening_socket
from svcproxy.netlink.socket import NETFILTER
from svcproxy.probe.core import entry as core
from svcproxy.probe.core.entry import Entry, Tuple

_ABSENT = {errno.ENOENT, errno.ESRCH}


def read(sent: Tuple) -> Entry | None:
    """Return the entry of the probe; ``None`` if there is none.

    Raises:
        NetlinkError: the kernel did not answer.
    """
    return _get(core.get_request(sent))


def read_reversed(sent: Tuple, entry: Entry) -> Entry | None:
    """Return the entry that packets of the endpoint belong to; ``None`` if there is none.

    Raises:
        NetlinkError: the kernel did not answer.
    """
    return _get(core.reversed_request(sent, entry))


def remove(sent: Tuple, entry: Entry) -> None:
    """Delete exactly this entry, if it still exists.

    Raises:
        NetlinkError: the kernel refused.
    """
    with NetlinkClient(NETFILTER, receive_buffer_bytes=0) as client:
        for refused in client.execute([core.remove_request(sent, entry)]):
            if refused.number not in _ABSENT:
                raise RequestRefusedError(refused.number)


def _get(request: NetlinkRequest) -> Entry | None:
    with NetlinkClient(NETFILTER, receive_buffer_bytes=0) as client:
        try:
            return core.decode(client.get(request).body)
        except RequestRefusedError as error:
            if error.errno in _ABSENT:
                return None
            raise


class Births:
    """Listens for the event of the probe's new entry.

    A reset deletes the entry of a connection that was never answered otherwise, before it could be
    read. The event also says where the packet went. While a socket listens, each new connection of
    the node costs about 2 µs more, so it listens for the time of the probe only, and not for UDP,
    whose entries remain.

    Args:
        sent: the probe.
    """

    def __init__(self, sent: Tuple) -> None:
        self._sent = sent
        self._stack = contextlib.ExitStack()
        self._listening = None
        if sent.protocol is Protocol.UDP:
            return
        with contextlib.suppress(NetlinkError):
            self._listening = self._stack.enter_context(
                listening_socket(NETFILTER, (core.EVENT_GROUP,), core.event_filter(sent))
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self) -> Entry | None:
        """Return the entry as it was when it was made; ``None`` if there was no event."""
        found = None
        with contextlib.suppress(NetlinkError, MalformedError):
            while self._listening is not None:
                data = self._listening.receive_queued()
                if data is None:
                    break
                for message in messages(data):
                    if core.is_about(message.body, self._sent):
                        found = core.decode(message.body)
        return found
