"""The netlink socket: transactions and dumps."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from svcproxy.backends.base import BackendError, TransactionError
from svcproxy.limits import NETLINK_DATAGRAM_BYTES
from svcproxy.model.names import IPFamily
from svcproxy.netlink.connection import PATIENCE, TIMED_OUT, only_from_kernel
from svcproxy.netlink.core.attributes import MalformedError, collect, string
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import generation
from svcproxy.netlink.core.nf_tables.protocol import MESSAGE_HEADER
from svcproxy.netlink.core.nf_tables.transaction import Message, batch, request
from svcproxy.refusals import REFUSALS

_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NAMESPACE_COOKIE = 71
_FAMILY_HEADER = 4
_BUFFER = 4 << 20
_MAX_BUFFER = (1 << 31) - 1
_TEXT, _OFFSET = 1, 2
_CODE = Struct("=i")
_FLAG_ACK_TLVS = 0x200


class StaleGenerationError(TransactionError):
    """Something in nf_tables changed after the generation that a transaction starts from."""


class Refusal(NamedTuple):
    """One message of a transaction that the kernel refused.

    Attributes:
        reason: the text of the error number, with the kernel's message if it sent one.
        number: the error number.
        message: the message, ``None`` if it is not known.
        offset: where in it the offending attribute is, 0 if unknown.
    """

    reason: str
    number: int
    message: Message | None
    offset: int


class RefusedError(TransactionError):
    """The kernel refused a transaction; nothing of it was done.

    Attributes:
        refusals: every message that was refused, in order; ``message``, ``offset`` and ``number``
            describe the first. Within one message the kernel stops at the first element that it
            refuses.
        message: the message that was refused, ``None`` if it is not known.
        offset: where in it the offending attribute is, 0 if unknown.
        number: the error number.
        partial: an earlier stage of the same plan was carried out.
    """

    def __init__(self, *refusals: Refusal) -> None:
        first = refusals[0]
        super().__init__(first.reason)
        self.refusals = refusals
        self.partial = False
        self.number = first.number
        self.message = first.message
        self.offset = first.offset


class InterruptedDumpError(Exception):
    """The table changed while it was read."""


class Connection:
    """A netlink socket for the nf_tables of one family; for one thread.

    Raises:
        OSError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self._sending = 0
        self._buffer = memoryview(bytearray(NETLINK_DATAGRAM_BYTES))
        self._open()
        self._first = self.port_id, self.namespace

    def _open(self, port: int = 0) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER
        )
        try:
            self._socket.bind((port, 0))
        except OSError:
            # Another socket has taken the address: events of our changes then look foreign.
            self._socket.bind((0, 0))
        only_from_kernel(self._socket)
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, PATIENCE)
        self._sending = 0
        self._grow(socket.SO_RCVBUF, _BUFFER)

    def _renew(self) -> None:
        """Replace the socket, so that a late answer is not taken for that to a later question.

        The new socket has the netlink address of the first one: by this address the kernel's
        events distinguish our changes from those of other processes.

        Raises:
            OSError: there is no new socket; the next failure tries again.
            BackendError: the calling thread has moved to another network namespace.
        """
        port, namespace = self._first
        self._socket.close()
        self._open(port)
        # Before Linux 5.14 there is no cookie, and the number is that of the address itself.
        if namespace > 0 and self.namespace != namespace:
            self._socket.close()
            raise BackendError("the thread is in another network namespace than before")

    def _broken(self, what: str, error: OSError | MalformedError) -> BackendError:
        """Replace the socket after a failure; return what to raise."""
        if isinstance(error, MalformedError):
            REFUSALS.count("netlink", "malformed")
            reason = str(error)
        else:
            late = error.errno in TIMED_OUT
            reason = os.strerror(errno.ETIMEDOUT if late else error.errno or 0)
        try:
            self._renew()
        except OSError as failure:  # as without a free descriptor
            reason += f"; cannot open another netlink socket: {failure.strerror}"
        return BackendError(f"{what}: {reason}")

    @property
    def port_id(self) -> int:
        """The socket's netlink address: the kernel names it in events as their cause."""
        address: tuple[int, int] = self._socket.getsockname()
        return address[0]

    @property
    def namespace(self) -> int:
        """A number that only connections in the same network namespace share (since 5.14)."""
        try:
            cookie = self._socket.getsockopt(socket.SOL_SOCKET, _NAMESPACE_COOKIE, 8)
        except OSError:
            return -self.port_id
        return int.from_bytes(cookie, sys.byteorder)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _grow(self, option: int, size: int) -> None:
        force = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}[option]  # SO_RCVBUFFORCE, …SND…
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, min(size, _MAX_BUFFER // 2))
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, option, size)

    def transact(
        self, messages: Sequence[Message], generation: int = 0, *, check: bool = False
    ) -> None:
        """Carry out a transaction, all of it or nothing.

        Args:
            messages: what to do.
            generation: refuse if anything has changed since; 0 for not to ask.
            check: let the kernel check it and not do it.

        Raises:
            StaleGenerationError: the generation is another one by now.
            RefusedError: the kernel refused.
            BackendError: it could not be sent.
        """
        data = batch(messages, self.family, generation, end=not check)
        try:
            if len(data) > self._sending:
                # A transaction is one datagram, and has to fit into the buffer with its overhead.
                self._grow(socket.SO_SNDBUF, len(data) + (64 << 10))
                self._sending = len(data) + (64 << 10)
            self._discard()
            self._socket.send(data)
            refusals = self._refusals(messages)
        except (OSError, MalformedError) as error:
            what = f"nf_tables transaction of {len(data)} bytes"
            raise self._broken(what, error) from error
        if refusals:
            raise RefusedError(*refusals)

    def _refusals(self, messages: Sequence[Message]) -> list[Refusal]:
        """The kernel has answered by the time that it has taken the transaction."""
        found: list[Refusal] = []
        for body, kind, sequence, flags in self._pending(found):
            number = _error(body) if kind == nft.ERROR else 0
            if not number:
                continue
            if number == errno.ERESTART:
                raise StaleGenerationError("nf_tables has changed meanwhile")
            message = messages[sequence - 1] if 0 < sequence <= len(messages) else None
            said, offset = _extended(body, flags)
            reason = f"{os.strerror(number)}: {said}" if said else os.strerror(number)
            found.append(Refusal(reason, number, message, offset))
        return found

    def _receive(self, flags: int = 0) -> bytes:
        """Wait for a datagram.

        Raises:
            OSError: none came in time, or the kernel had to drop some.
            MalformedError: it is longer than any that the kernel should send.
        """
        # With MSG_TRUNC the result is the length of the datagram, also of one that does not fit.
        size = self._socket.recv_into(self._buffer, 0, flags | socket.MSG_TRUNC)
        if size > len(self._buffer):
            raise MalformedError(f"datagram of {size} bytes")
        return self._buffer[:size].tobytes()

    def _pending(self, known: Sequence[Refusal]) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield the answers that have arrived.

        If they overflow the receive buffer, the first refusals are enough: the next attempt leaves
        out what they name and reveals the others. ``known`` are the refusals found so far.
        """
        lost: OSError | None = None
        while True:
            try:
                data = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                REFUSALS.count("netlink", "enobufs")
                lost = error
            else:
                yield from _split(data)
        if lost is not None and not known:
            raise lost

    def _discard(self) -> None:
        """Forget answers that an interrupted conversation left behind."""
        while True:
            try:
                self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                REFUSALS.count("netlink", "enobufs")

    def generation(self) -> int:
        """The present generation; every transaction of anybody makes it another one.

        Raises:
            BackendError: the kernel did not say.
        """
        for body in self._ask(nft.GET_GENERATION, 0):
            try:
                return generation(body)
            except MalformedError as error:
                raise BackendError(f"nf_tables generation: {error}") from error
        raise BackendError("the kernel names no nf_tables generation")

    def get(self, kind: int, attributes: bytes) -> bytes | None:
        """Ask for one object, ``None`` if there is none.

        Raises:
            BackendError: the kernel refused to answer.
        """
        try:
            return next(iter(self._ask(kind, 0, attributes)), None)
        except RefusedError as error:
            if error.number == errno.ENOENT:
                return None
            raise

    def dump(self, kind: int, attributes: bytes = b"") -> list[bytes]:
        """Ask for all objects of a kind.

        Raises:
            InterruptedDumpError: the kernel could not give a consistent answer.
            BackendError: it refused to answer.
        """
        return self._ask(kind, nft.FLAG_DUMP, attributes)

    def _ask(self, kind: int, flags: int, attributes: bytes = b"") -> list[bytes]:
        found: list[bytes] = []
        try:
            self._discard()
            self._socket.send(request(kind, flags, self.family, attributes))
            while not self._take_answer(self._receive(), found, dump=bool(flags)):
                pass
        except (OSError, MalformedError) as error:
            raise self._broken("nf_tables", error) from error
        return found

    def _take_answer(self, data: bytes, found: list[bytes], *, dump: bool) -> bool:
        """Add what a datagram has to ``found``; whether the answer is complete."""
        for body, kind, _, flags in _split(data):
            if dump and flags & nft.FLAG_INTERRUPTED:
                self._discard()
                raise InterruptedDumpError
            if kind in {nft.ERROR, nft.DONE}:
                number = _error(body)
                if number == errno.EINTR:
                    raise InterruptedDumpError
                if number:
                    raise RefusedError(Refusal(os.strerror(number), number, None, 0))
                return True
            found.append(body[_FAMILY_HEADER:])
            if not dump:
                return True
        return False


def _split(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """The messages of a datagram: what follows the header, type, sequence number and flags.

    Raises:
        MalformedError: a length does not fit.
    """
    start, end = 0, len(data)
    while start < end:
        if start + MESSAGE_HEADER.size > end:
            raise MalformedError(f"half a message at byte {start}")
        size, kind, flags, sequence, _ = MESSAGE_HEADER.unpack_from(data, start)
        if size < MESSAGE_HEADER.size or start + size > end:
            raise MalformedError(f"message of {size} bytes at byte {start} of {end}")
        yield data[start + MESSAGE_HEADER.size : start + size], kind, sequence, flags
        start += (size + 3) & ~3


def _error(body: bytes) -> int:
    """The error number in an acknowledgement or at the end of a dump, 0 for success.

    Raises:
        MalformedError: there is no number.
    """
    if len(body) < _CODE.size:
        raise MalformedError(f"acknowledgement of {len(body)} bytes")
    return -int(_CODE.unpack_from(body)[0])


def _extended(body: bytes, flags: int) -> tuple[str, int]:
    """The text and the offset of an extended acknowledgement."""
    if not flags & _FLAG_ACK_TLVS:
        return "", 0
    try:
        # The error number is followed by the header of the message that it is about.
        found = collect(body, _CODE.size + MESSAGE_HEADER.size)
    except MalformedError:
        return "", 0
    offset = int.from_bytes(found.get(_OFFSET, b"")[:4], sys.byteorder)
    return string(found.get(_TEXT, b"")), offset
