"""Netlink conversations: batches of requests with separate errors, single requests and dumps."""

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

from svcproxy.limits import NETLINK_DATAGRAM_BYTES
from svcproxy.netlink.core.messages import (
    CODE,
    DONE,
    ERROR,
    FLAG_ACK,
    FLAG_DUMP,
    FLAG_INTERRUPTED,
    HEADER,
    NetlinkMessage,
    NetlinkRequest,
    encode,
    error_number,
    split,
)
from svcproxy.netlink.errors import (
    BufferOverrunError,
    InterruptedDumpError,
    MalformedError,
    NetlinkError,
    RequestRefusedError,
)
from svcproxy.netlink.socket import RECEIVE_BUFFER_BYTES, NetlinkSocket

DUMP_ATTEMPTS = 5
"""How often a dump is tried that concurrent changes interrupt."""
MAX_MESSAGES = 200
"""Requests per send. If all fail, each answer takes some 0.8 kB of the receive buffer, which has
208 KiB where svcproxy may not enlarge it."""
MAX_BYTES = 96 << 10
"""Bytes per send, unless a single message is longer: half of the default send buffer."""
_LAST_SEQUENCE = (1 << 32) - 1
_DUMP_ENDS = frozenset({ERROR, DONE})


class RefusedRequest(NamedTuple):
    """A request of a batch that the kernel refused.

    Attributes:
        position: the request's index in the batch.
        number: the error number.
        body: the rest of the answer: the header of the request, then protocol-specific data.
    """

    position: int
    number: int
    body: bytes


class NetlinkClient:
    """Sends requests of one netlink protocol and receives the answers; for one thread.

    Sequence numbers are not reused, so a late answer to an abandoned request is not mistaken for
    the answer to another one. After a time-out or a malformed answer the socket is replaced
    (``NetlinkSocket.replace_after``).

    Args:
        protocol: ``GENERIC``, ``ROUTE`` or ``NETFILTER``.
        timeout_seconds: how long to wait for an answer; ``NETLINK_TIMEOUT_SECONDS`` by default.
        datagram_bytes: the longest datagram that is accepted.
        receive_buffer_bytes: how many bytes of answers the kernel may queue; 0 for its default.
        extended_errors: ask the kernel for error texts and offsets.

    Attributes:
        socket: the socket, for protocols with conversations of their own.
        sent: the number of messages sent.

    Raises:
        NetlinkError: the kernel does not support the protocol.
    """

    def __init__(
        self,
        protocol: int,
        *,
        timeout_seconds: float | None = None,
        datagram_bytes: int = NETLINK_DATAGRAM_BYTES,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        extended_errors: bool = False,
    ) -> None:
        self._sequence = 0
        self.sent = 0
        self.socket = NetlinkSocket(
            protocol,
            timeout_seconds=timeout_seconds,
            datagram_bytes=datagram_bytes,
            receive_buffer_bytes=receive_buffer_bytes,
            extended_errors=extended_errors,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def execute(self, requests: Iterable[NetlinkRequest]) -> list[RefusedRequest]:
        """Have the kernel execute requests in order; a refused request does not stop the others.

        Requests are consumed as they are sent, so that they need not all be in memory.

        Returns:
            The refused requests, in order.

        Raises:
            NetlinkError: sending failed, or the kernel did not answer in time; an unknown number
                of requests were executed.
        """
        refusals: list[RefusedRequest] = []
        start = 0
        for batch in _batches(requests):
            first = self._reserve(len(batch))
            last = first + len(batch) - 1
            encoded = [encode(r, first + n) for n, r in enumerate(batch[:-1])]
            # The kernel always answers a failed request, and finishes each before it starts the
            # next. So only the last one needs an acknowledgement: no error follows it.
            encoded.append(encode(batch[-1], last, FLAG_ACK))
            try:
                self.socket.send(b"".join(encoded))
                refusals += self._refused_among(first, last, start)
            except NetlinkError as error:
                self.socket.replace_after(error)
                raise
            start += len(batch)
        return refusals

    def get(self, request: NetlinkRequest) -> NetlinkMessage:
        """Send a request and return the one message that answers it.

        Raises:
            RequestRefusedError: the kernel refused.
            NetlinkError: sending failed, or the kernel did not answer in time.
        """
        sequence = self._reserve(1)
        try:
            self.socket.send(encode(request, sequence))
            message, number = self._answer(sequence)
        except NetlinkError as error:
            self.socket.replace_after(error)
            raise
        if number:
            raise RequestRefusedError(number)
        return message

    def _answer(self, sequence: int) -> tuple[NetlinkMessage, int]:
        """Return the answer to a request, and its error number."""
        while True:
            data = self.socket.receive()
            for kind, flags, answered, start, end in split(data):
                if answered == sequence:
                    number = error_number(data, start, end) if kind == ERROR else 0
                    return NetlinkMessage(kind, flags, answered, data[start:end]), number

    def dump(self, request: NetlinkRequest) -> list[bytes]:
        """Have the kernel list objects; return the body of each message.

        A dump that concurrent changes interrupted is repeated.

        Raises:
            InterruptedDumpError: all attempts were interrupted.
            RequestRefusedError: the kernel refused.
            NetlinkError: sending failed, or the kernel did not answer in time.
        """
        for attempt in range(1, DUMP_ATTEMPTS + 1):
            found: list[bytes] = []
            try:
                self.dump_each(request, found.append)
            except InterruptedDumpError:
                continue
            except BufferOverrunError:
                if attempt == DUMP_ATTEMPTS:
                    raise
            else:
                return found
        raise InterruptedDumpError(f"interrupted {DUMP_ATTEMPTS} times")

    def dump_each(
        self, request: NetlinkRequest, take: Callable[[bytes], object], skip: int = 0
    ) -> None:
        """Have the kernel list objects, once; pass the body of each message to ``take``.

        Args:
            request: the request, without ``FLAG_DUMP``.
            take: called with each body. A ``NetlinkError`` that it raises ends the dump.
            skip: how many bytes at the start of each body to leave out.

        Raises:
            InterruptedDumpError: objects changed during the dump; ``take`` may have missed some.
            RequestRefusedError: the kernel refused.
            NetlinkError: sending failed, or the kernel did not answer in time.
        """
        sequence = self._reserve(1)
        try:
            self.socket.send(encode(request, sequence, FLAG_DUMP))
            number, seen_flags = self._receive_dump(sequence, take, skip)
        except NetlinkError as error:
            self.socket.replace_after(error)
            raise
        if number == errno.EINTR or (not number and seen_flags & FLAG_INTERRUPTED):
            raise InterruptedDumpError
        if number:
            raise RequestRefusedError(number)

    def _receive_dump(
        self, sequence: int, take: Callable[[bytes], object], skip: int
    ) -> tuple[int, int]:
        """Receive a dump to its end; return its error number and the flags of all messages."""
        seen_flags = 0
        while True:
            data = self.socket.receive()
            for kind, flags, answered, start, end in split(data):
                if answered != sequence:
                    continue
                seen_flags |= flags
                if kind in _DUMP_ENDS:
                    return error_number(data, start, end), seen_flags
                take(data[start + skip : end])

    def _reserve(self, count: int) -> int:
        """Return the first of ``count`` unused sequence numbers."""
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0  # after years: no answer to the first requests can still arrive
        first = self._sequence + 1
        self._sequence += count
        self.sent += count
        return first

    def _refused_among(self, first: int, last: int, start: int) -> Iterator[RefusedRequest]:
        """Yield the refusals among the requests with these sequence numbers."""
        sequence, buffer = 0, self.socket.buffer
        while sequence != last:
            size = self.socket.receive_size()
            if size < HEADER.size + CODE.size:
                raise MalformedError(f"answer of {size} bytes")
            _, kind, _, sequence, _ = HEADER.unpack_from(buffer)
            if kind != ERROR or not first <= sequence <= last:
                continue  # a late answer to an abandoned request
            (code,) = CODE.unpack_from(buffer, HEADER.size)
            if code:
                body = buffer[HEADER.size + CODE.size : size].tobytes()
                yield RefusedRequest(start + sequence - first, -code, body)


def _batches(requests: Iterable[NetlinkRequest]) -> Iterator[list[NetlinkRequest]]:
    """Split requests so that neither a batch nor its answers overflow a socket buffer."""
    batch, size = list[NetlinkRequest](), 0
    for request in requests:
        length = HEADER.size + len(request.body) + 3
        if batch and (len(batch) == MAX_MESSAGES or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += length
    if batch:
        yield batch
