"""Who is refused: the packets that the accounting table sends to an nflog group."""

import errno
from collections.abc import Mapping
from typing import Self

from svcproxy.accounting.core.activity import Frequent
from svcproxy.accounting.core.frontends import FrontendIndex, FrontendKey
from svcproxy.accounting.core.table import LOG_PREFIX
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import split
from svcproxy.netlink.core.nflog import PACKET, bind_request, decode_packet
from svcproxy.netlink.errors import BufferOverrunError, MalformedError, NetlinkError
from svcproxy.netlink.socket import NETFILTER

_COPIED = 128
_MOST = 10_000
"""Packets that are read at a time; the table sends some 10 per second."""


class GroupUnavailableError(Exception):
    """The packets of a group cannot be read; the message is one line with the reason."""


class RefusedPackets:
    """Receives the packets of an nflog group; for one thread.

    A group has one listener at a time. The kernel forgets it when the socket is closed.

    Args:
        group: the number of the group.

    Raises:
        GroupUnavailableError: another program listens to the group, or the kernel refused.
    """

    def __init__(self, group: int) -> None:
        try:
            self._client = NetlinkClient(NETFILTER)
        except NetlinkError as error:
            raise GroupUnavailableError(f"cannot listen to nflog group {group}: {error}") from error
        try:
            answer = self._client.get(bind_request(group, _COPIED))
        except NetlinkError as error:
            self.close()
            taken = error.errno in {errno.EBUSY, errno.EPERM}
            reason = "another program does, or this one is not root" if taken else str(error)
            raise GroupUnavailableError(
                f"cannot listen to nflog group {group}: {reason}"
            ) from error
        assert not answer.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._client.close()

    def clients(
        self, indexes: Mapping[IPFamily, FrontendIndex]
    ) -> dict[FrontendKey, Frequent[bytes]]:
        """Return the clients in the packets that have arrived, by frontend."""
        found: dict[FrontendKey, Frequent[bytes]] = {}
        for _ in range(_MOST):
            try:
                data = self._client.socket.receive_queued()
                if data is None:
                    break
                self._count(data, indexes, found)
            except (BufferOverrunError, MalformedError):
                continue
        return found

    @staticmethod
    def _count(
        data: bytes,
        indexes: Mapping[IPFamily, FrontendIndex],
        found: dict[FrontendKey, Frequent[bytes]],
    ) -> None:
        for kind, _, _, start, end in split(data):
            packet = decode_packet(data[start:end]) if kind == PACKET else None
            if packet is None or packet.prefix != LOG_PREFIX:
                continue
            family = IPFamily.IPV4 if len(packet.source) == 4 else IPFamily.IPV6
            index = indexes.get(family)
            key = index.find(packet.protocol, packet.destination, packet.port) if index else None
            if key is not None:
                found.setdefault(key, Frequent()).add(packet.source)
