"""A netlink socket: batches of requests, whose errors are told one by one, and dumps."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from svcproxy.limits import NETLINK_DATAGRAM_BYTES, NETLINK_PATIENCE_SECONDS
from svcproxy.netlink.core.attributes import MalformedError
from svcproxy.netlink.core.messages import (
    CODE,
    DONE,
    ERROR,
    FLAG_ACK,
    FLAG_DUMP,
    FLAG_INTERRUPTED,
    HEADER,
    Message,
    Request,
    encode,
    messages,
)
from svcproxy.refusals import REFUSALS

GENERIC, ROUTE, NETFILTER = 16, 0, 12

_SOL_NETLINK, _CAP_ACK = 270, 10
_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
PATIENCE = Struct("@ll").pack(NETLINK_PATIENCE_SECONDS, 0)
"""The kernel's time-out of a netlink socket, as ``SO_RCVTIMEO`` wants it (``struct timeval``)."""
TIMED_OUT = frozenset({errno.EAGAIN, errno.ETIMEDOUT})
"""The error numbers that say so: the kernel's own is EAGAIN."""
_ATTEMPTS = 5
MAX_MESSAGES = 200
"""In one send: if all fail, each answer takes some 0.8 kB of the receive buffer, and 208 KiB is what
a socket has where its size cannot be set."""
MAX_BYTES = 96 << 10
"""In one send, unless a single message is longer; half of the usual send buffer."""
_LAST_SEQUENCE = (1 << 32) - 1


def only_from_kernel(made: socket.socket) -> None:
    """Have a socket accept messages from the kernel only, not from other processes."""
    made.connect((0, 0))


class Refusal(NamedTuple):
    """A request that the kernel refused: its place among those sent, the error, the answer.

    ``body`` is what follows the error number in the answer: the header of the request, and
    more where the protocol says so.
    """

    position: int
    number: int
    body: bytes


class InterruptedDumpError(OSError):
    """What was listed kept changing."""


class Connection:
    """A socket for one netlink protocol, in the network namespace of the thread that makes it.

    Only one thread may use it. Sequence numbers are not reused, so that a late answer to an
    abandoned request is not taken for the answer to another one. After a time-out or a malformed
    answer the socket is replaced: the kernel may still be in the middle of a dump, and does not
    start another one on the same socket.

    Args:
        protocol: ``GENERIC``, ``ROUTE`` or ``NETFILTER``.

    Raises:
        OSError: the kernel does not know the protocol.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._sequence = 0
        self._buffer = bytearray(NETLINK_DATAGRAM_BYTES)
        self.sent = 0
        """How many messages have been sent."""
        self._open()

    def _open(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol
        )
        self._socket.bind((0, 0))
        only_from_kernel(self._socket)
        # The kernel's own time-outs: Python's cost a poll for each call, and the time twice.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, PATIENCE)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _RECEIVE_BUFFER)

    def _broken(self, error: OSError | MalformedError) -> OSError:
        """Replace the socket after a failure; return what to raise."""
        self._renew()
        if isinstance(error, MalformedError):
            REFUSALS.count("netlink", "malformed")
            return OSError(errno.EBADMSG, str(error))
        if error.errno == errno.ENOBUFS:
            REFUSALS.count("netlink", "enobufs")
        # The kernel's EAGAIN would read "temporarily unavailable".
        number = error.errno or 0
        return _refused(errno.ETIMEDOUT if number in TIMED_OUT else number)

    def _renew(self) -> None:
        self._socket.close()
        self._open()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def execute(self, requests: Iterable[Request]) -> list[Refusal]:
        """Have the kernel carry out requests, one after the other; a refused one stops none.

        They are taken as they are sent, so that many need not be in memory at once.

        Returns:
            Those refused, in order.

        Raises:
            OSError: they could not be sent, or answers did not come (after 30 s); how many were
                carried out is unknown.
        """
        refusals: list[Refusal] = []
        start = 0
        for batch in _batches(requests):
            first = self._reserve(len(batch))
            last = first + len(batch) - 1
            encoded = [encode(r, first + n) for n, r in enumerate(batch[:-1])]
            # Errors are always answered, and the kernel is done with one before it begins the
            # next: the answer to the last says that there are no more.
            encoded.append(encode(batch[-1], last, FLAG_ACK))
            try:
                self._socket.send(b"".join(encoded))
                refusals += self._refused_among(first, last, start)
            except (OSError, MalformedError) as error:
                raise self._broken(error) from error
            start += len(batch)
        return refusals

    def ask(self, request: Request) -> Message:
        """Send a request and return the one message that answers it.

        Raises:
            OSError: the kernel refused, with its error number, or did not answer.
        """
        sequence = self._reserve(1)
        try:
            self._socket.send(encode(request, sequence))
            message = next(self._answers(sequence))
        except (OSError, MalformedError) as error:
            raise self._broken(error) from error
        if message.kind == ERROR and message.error:
            raise _refused(message.error)
        return message

    def dump(self, request: Request) -> list[bytes]:
        """Have the kernel list something; return what follows the header of each answer.

        Raises:
            InterruptedDumpError: no attempt gave a consistent list.
            OSError: the kernel refused, with its error number, or did not answer.
        """
        for attempt in range(_ATTEMPTS):
            try:
                found, whole = self._dump(request)
            except OSError as error:
                if error.errno != errno.ENOBUFS or attempt == _ATTEMPTS - 1:
                    raise
            else:
                if whole:
                    return found
        raise InterruptedDumpError(f"interrupted {_ATTEMPTS} times")

    def _dump(self, request: Request) -> tuple[list[bytes], bool]:
        sequence = self._reserve(1)
        found: list[bytes] = []
        whole, number = True, 0
        try:
            self._socket.send(encode(request, sequence, FLAG_DUMP))
            for message in self._answers(sequence):
                whole = whole and not message.flags & FLAG_INTERRUPTED
                if message.kind in {ERROR, DONE}:
                    number = message.error
                    break
                found.append(message.body)
        except (OSError, MalformedError) as error:
            raise self._broken(error) from error
        if number:
            raise _refused(number)
        return found, whole

    def _reserve(self, count: int) -> int:
        """The first of ``count`` sequence numbers that nothing was sent with."""
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0  # after years, by when nobody waits for the first answers
        first = self._sequence + 1
        self._sequence += count
        self.sent += count
        return first

    def _refused_among(self, first: int, last: int, start: int) -> Iterator[Refusal]:
        """What was refused of the requests with these sequence numbers."""
        sequence = 0
        while sequence != last:
            size = self._receive()
            if size < HEADER.size + CODE.size:
                raise MalformedError(f"answer of {size} bytes")
            _, kind, _, sequence, _ = HEADER.unpack_from(self._buffer)
            if kind != ERROR or not first <= sequence <= last:
                continue  # the late answer to something that was given up
            (code,) = CODE.unpack_from(self._buffer, HEADER.size)
            if code:
                body = bytes(self._buffer[HEADER.size + CODE.size : size])
                yield Refusal(start + sequence - first, -code, body)

    def _receive(self) -> int:
        """Wait for a datagram and put it into the buffer; return its size.

        Raises:
            OSError: none came in time, or the kernel had to drop some.
            MalformedError: it is longer than the buffer.
        """
        # With MSG_TRUNC the result is the length of the datagram, also of one that does not fit.
        size = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if size > len(self._buffer):
            raise MalformedError(f"datagram of {size} bytes")
        return size

    def _answers(self, sequence: int) -> Iterator[Message]:
        while True:
            size = self._receive()
            for message in messages(bytes(self._buffer[:size])):
                if message.sequence == sequence:
                    yield message


def _batches(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Cut so that neither the answers nor a batch overflow a socket's buffer."""
    batch, size = list[Request](), 0
    for request in requests:
        length = HEADER.size + len(request.body) + 3
        if batch and (len(batch) == MAX_MESSAGES or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += length
    if batch:
        yield batch


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))
