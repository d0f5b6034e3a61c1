"""IPVS over generic netlink: virtual servers and real servers of one family."""

import os
from collections.abc import Iterator, Sequence
from errno import ESRCH
from pathlib import Path

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs import messages
from svcproxy.backends.ipvs.failing import failed
from svcproxy.backends.ipvs.messages import Info, Timeouts
from svcproxy.backends.ipvs.operations import Failure, ServerOperation
from svcproxy.backends.ipvs.values import (
    Connections,
    RealServerKey,
    RealServers,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.limits import IP_VS_LISTING_BYTES
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient, RefusedRequest
from svcproxy.netlink.core.messages import NetlinkMessage, NetlinkRequest
from svcproxy.netlink.socket import GENERIC
from svcproxy.refusals import REFUSALS

_PIECE = 1 << 14
_LISTING = Path("/proc/thread-self/net/ip_vs")


class Ipvs:
    """IPVS in the network namespace of the thread that makes it; for that thread alone.

    Raises:
        BackendError: the kernel has no IPVS: ``ip_vs`` is not loaded.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        try:
            self._client = NetlinkClient(GENERIC)
        except OSError as error:
            raise failed("open a generic netlink socket", error) from error
        try:
            answer = self._client.get(messages.family_request())
        except OSError as error:
            self._client.close()
            raise failed("find IPVS (is the kernel module ip_vs loaded?)", error) from error
        self._kind = messages.decode_family(answer.body)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def execute(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        """Carry out operations in their order; one that fails stops none of the others.

        Additions of what is there already are corrected after all the others.

        Raises:
            BackendError: the kernel did not answer; what was done is unknown.
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
        try:
            return self._client.execute(
                messages.request(self._kind, operation) for operation in operations
            )
        except OSError as error:
            raise failed(f"send {len(operations)} messages to IPVS", error) from error

    def virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """All virtual servers of the family but those that select by firewall mark.

        Raises:
            BackendError: the kernel would not list them.
        """
        bodies = self._dump("list virtual servers", messages.virtual_servers_request(self._kind))
        return dict(messages.decode_virtual_servers(bodies, self.family))

    def real_servers(self, key: VirtualServerKey) -> dict[RealServerKey, tuple[int, Connections]]:
        """The real servers of one virtual server, with weight and connections; empty if none.

        Raises:
            BackendError: the kernel would not list them.
        """
        what = f"list the real servers of {key.address} port {key.port}/{key.protocol.keyword}"
        bodies = self._dump(what, messages.real_servers_request(self._kind, key))
        return dict(messages.decode_real_servers(bodies, self.family))

    def virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """The properties of one virtual server; ``None`` if there is none.

        Raises:
            BackendError: the kernel would not tell.
        """
        try:
            answer = self._client.get(messages.virtual_server_request(self._kind, key))
        except OSError as error:
            if error.errno == ESRCH:
                return None
            raise failed(f"ask for the virtual server {key.address}", error) from error
        return dict(messages.decode_virtual_servers([answer.body], self.family)).get(key)

    def weights(self, key: VirtualServerKey) -> RealServers:
        """The real servers of one virtual server with their weights; empty if there is none.

        Raises:
            BackendError: the kernel would not list them.
        """
        return {real: weight for real, (weight, _) in self.real_servers(key).items()}

    def listing(self) -> Iterator[bytes]:
        """What ``listing_pieces`` gives: it is of all families."""
        return listing_pieces()

    def timeouts(self) -> Timeouts:
        """The time-outs of connections in this network namespace.

        Raises:
            BackendError: the kernel would not say.
        """
        answer = self._ask("read IPVS time-outs", messages.timeouts_request(self._kind))
        return messages.decode_timeouts(answer.body)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set those time-outs that are not 0.

        Raises:
            BackendError: the kernel refused.
        """
        requests = [messages.set_timeouts_request(self._kind, timeouts)]
        try:
            for refusal in self._client.execute(requests):
                raise OSError(refusal.number, os.strerror(refusal.number))  # noqa: TRY301
        except OSError as error:
            raise failed(f"set IPVS time-outs to {timeouts}", error) from error

    def info(self) -> Info:
        """IPVS's version and the size of its connection table.

        Raises:
            BackendError: the kernel would not say.
        """
        return messages.decode_info(self._ask("ask", messages.info_request(self._kind)).body)

    def _ask(self, what: str, request: NetlinkRequest) -> NetlinkMessage:
        try:
            return self._client.get(request)
        except OSError as error:
            raise failed(what, error) from error

    def _dump(self, what: str, request: NetlinkRequest) -> list[bytes]:
        try:
            return self._client.dump(request)
        except OSError as error:
            raise failed(what, error) from error


def _failure(operation: ServerOperation, number: int) -> Failure:
    reason = messages.explanation(operation, number) or os.strerror(number)
    return Failure(operation, number, reason)


def read_listing() -> bytes:
    """What ``procfile`` parses, of the network namespace of the calling thread.

    Raises:
        BackendError: it cannot be read: ``ip_vs`` is not loaded; or it is too long.
    """
    pieces, size = [], 0
    for piece in listing_pieces():
        size += len(piece)
        if size > IP_VS_LISTING_BYTES:
            REFUSALS.count("ip_vs", "bytes")
            raise BackendError(f"{_LISTING} is longer than {IP_VS_LISTING_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def listing_pieces() -> Iterator[bytes]:
    """The same, piece by piece; they may end anywhere.

    Each is of one moment, whatever is changed between them: the kernel finds the place of a piece
    by counting virtual servers from the start.

    Raises:
        BackendError: as above.
    """
    # New memory for each piece would cost more than many of the pieces do.
    buffer = memoryview(bytearray(_PIECE))
    try:
        with _LISTING.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield bytes(buffer[:size])
    except OSError as error:
        raise failed(f"read {_LISTING}", error) from error
