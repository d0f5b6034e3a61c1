"""IPVS over generic netlink: virtual servers and real servers of one family."""

import os
from collections.abc import Iterator, Sequence
from errno import EFBIG, ESRCH
from pathlib import Path

from svcproxy.limits import IP_VS_LISTING_BYTES
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient, RefusedRequest
from svcproxy.netlink.core import ipvs as messages
from svcproxy.netlink.core.ipvs import Info, Timeouts
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    RealServers,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.messages import NetlinkMessage, NetlinkRequest
from svcproxy.netlink.core.operations import Failure, ServerOperation
from svcproxy.netlink.errors import NetlinkError, RequestRefusedError, doing
from svcproxy.netlink.socket import GENERIC
from svcproxy.refusals import REFUSALS

_CHUNK_BYTES = 1 << 14
_LISTING = Path("/proc/thread-self/net/ip_vs")


class IpvsSocket:
    """A socket to IPVS in the network namespace of the calling thread.

    Only the thread that creates it may use it.

    Args:
        family: the family of the virtual servers.

    Raises:
        NetlinkError: the kernel has no IPVS (``ENOENT``: ``ip_vs`` is not loaded).
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        with doing("open a generic netlink socket"):
            self._client = NetlinkClient(GENERIC)
        try:
            with doing("find IPVS (is the kernel module ip_vs loaded?)"):
                answer = self._client.get(messages.family_request())
        except NetlinkError:
            self._client.close()
            raise
        self._kind = messages.decode_family(answer.body)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def execute(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        """Execute operations in order; a failed operation does not stop the others.

        Additions of existing servers are converted to changes and sent after all others.

        Returns:
            The operations that the kernel refused.

        Raises:
            NetlinkError: the kernel did not answer; the effect of the operations is unknown.
        """
        corrections: list[ServerOperation] = []
        failures: list[Failure] = []
        for refusal in self._execute(operations):
            operation = operations[refusal.position]
            again = messages.correction(operation, refusal.number)
            if again is not None:
                corrections.append(again)
            elif not messages.is_done(operation, refusal.number):
                failures.append(_failure(operation, refusal.number))
        failures += [
            _failure(corrections[r.position], r.number) for r in self._execute(corrections)
        ]
        return failures

    def _execute(self, operations: Sequence[ServerOperation]) -> list[RefusedRequest]:
        with doing(f"send {len(operations)} messages to IPVS"):
            return self._client.execute(
                messages.operation_request(self._kind, operation) for operation in operations
            )

    def virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """List the virtual servers of the family, without those that match a firewall mark.

        Raises:
            NetlinkError: the kernel did not list them.
        """
        bodies = self._dump("list virtual servers", messages.virtual_servers_request(self._kind))
        return dict(messages.decode_virtual_servers(bodies, self.family))

    def real_servers(self, key: VirtualServerKey) -> dict[RealServerKey, tuple[int, Connections]]:
        """List the weights and connections of a virtual server's real servers.

        The result is empty if there is no such virtual server.

        Raises:
            NetlinkError: the kernel did not list them.
        """
        action = f"list the real servers of {key.address} port {key.port}/{key.protocol.keyword}"
        bodies = self._dump(action, messages.real_servers_request(self._kind, key))
        return dict(messages.decode_real_servers(bodies, self.family))

    def virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read the properties of one virtual server; ``None`` if it does not exist.

        Raises:
            NetlinkError: the kernel refused.
        """
        try:
            with doing(f"read the virtual server {key.address}"):
                answer = self._client.get(messages.virtual_server_request(self._kind, key))
        except NetlinkError as error:
            if error.errno == ESRCH:
                return None
            raise
        return dict(messages.decode_virtual_servers([answer.body], self.family)).get(key)

    def weights(self, key: VirtualServerKey) -> RealServers:
        """List the weights of a virtual server's real servers; empty if it does not exist.

        Raises:
            NetlinkError: the kernel did not list them.
        """
        return {real: weight for real, (weight, _) in self.real_servers(key).items()}

    def listing(self) -> Iterator[bytes]:
        """Read ``/proc/net/ip_vs``, which lists the virtual servers of both families.

        See ``listing_chunks``.
        """
        return listing_chunks()

    def timeouts(self) -> Timeouts:
        """Read the connection timeouts of this network namespace.

        Raises:
            NetlinkError: the kernel refused.
        """
        answer = self._ask("read IPVS timeouts", messages.timeouts_request(self._kind))
        return messages.decode_timeouts(answer.body)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set the connection timeouts that are not 0.

        Raises:
            NetlinkError: the kernel refused.
        """
        requests = [messages.set_timeouts_request(self._kind, timeouts)]
        with doing(f"set IPVS timeouts to {timeouts}"):
            for refusal in self._client.execute(requests):
                raise RequestRefusedError(refusal.number)

    def info(self) -> Info:
        """Read the version of IPVS and the size of its connection table.

        Raises:
            NetlinkError: the kernel refused.
        """
        answer = self._ask("read the version of IPVS", messages.info_request(self._kind))
        return messages.decode_info(answer.body)

    def _ask(self, action: str, request: NetlinkRequest) -> NetlinkMessage:
        with doing(action):
            return self._client.get(request)

    def _dump(self, action: str, request: NetlinkRequest) -> list[bytes]:
        with doing(action):
            return self._client.dump(request)


def _failure(operation: ServerOperation, number: int) -> Failure:
    reason = messages.explanation(operation, number) or os.strerror(number)
    return Failure(operation, number, reason)


def read_listing() -> bytes:
    """Read ``/proc/net/ip_vs`` of the calling thread's network namespace.

    Raises:
        NetlinkError: the file cannot be read (``ip_vs`` is not loaded), or is too long.
    """
    chunks, size = [], 0
    for chunk in listing_chunks():
        size += len(chunk)
        if size > IP_VS_LISTING_BYTES:
            REFUSALS.count("ip_vs", "bytes")
            raise NetlinkError(EFBIG, f"{_LISTING} is longer than {IP_VS_LISTING_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def listing_chunks() -> Iterator[bytes]:
    """Read ``/proc/net/ip_vs`` chunk by chunk; a chunk may end anywhere in a line.

    Each chunk is consistent in itself. Servers may be added and removed between two chunks: the
    kernel finds the start of the next chunk by counting virtual servers from the beginning.

    Raises:
        NetlinkError: the file cannot be read.
    """
    with doing(f"read {_LISTING}"), _LISTING.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
