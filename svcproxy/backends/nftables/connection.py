"""The netlink socket: transactions and dumps."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from struct import Struct

from svcproxy.backends.base import BackendError, TransactionError
from svcproxy.backends.nftables import protocol as nft
from svcproxy.backends.nftables.dump import generation
from svcproxy.backends.nftables.protocol import MESSAGE_HEADER
from svcproxy.backends.nftables.transaction import Message, batch, request
from svcproxy.model.names import IPFamily
from svcproxy.netlink.attributes import MalformedError, collect, string

_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NAMESPACE_COOKIE = 71
_FAMILY_HEADER = 4
_RECEIVE = 1 << 20
_BUFFER = 4 << 20
_MAX_BUFFER = (1 << 31) - 1
_TEXT, _OFFSET = 1, 2
_CODE = Struct("=i")
_FLAG_ACK_TLVS = 0x200


class StaleGenerationError(TransactionError):
    """Something in nf_tables changed after the generation that a transaction starts from."""


class RefusedError(TransactionError):
    """The kernel refused a transaction; nothing of it was done.

    Attributes:
        message: the message that was refused, ``None`` if it is not known.
        offset: where in it the offending attribute is, 0 if unknown.
        number: the error number.
    """

    def __init__(self, reason: str, number: int, message: Message | None, offset: int) -> None:
        super().__init__(reason)
        self.number = number
        self.message = message
        self.offset = offset


class InterruptedDumpError(Exception):
    """The table changed while it was read."""


class Connection:
    """A netlink socket for the nf_tables of one family; for one thread.

    Raises:
        OSError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER
        )
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sending = 0
        self._grow(socket.SO_RCVBUF, _BUFFER)

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
        if len(data) > self._sending:
            # A transaction is one datagram, and has to fit into the buffer with its overhead.
            self._sending = len(data) + (64 << 10)
            self._grow(socket.SO_SNDBUF, self._sending)
        self._discard()
        try:
            self._socket.send(data)
        except OSError as error:
            raise BackendError(
                f"nf_tables transaction of {len(data)} bytes: {os.strerror(error.errno or 0)}"
            ) from error
        self._raise_first_error(messages)

    def _raise_first_error(self, messages: Sequence[Message]) -> None:
        """The kernel has answered by the time that it has taken the transaction."""
        for body, kind, sequence, flags in self._pending():
            if kind != nft.ERROR:
                continue
            number = -_CODE.unpack_from(body)[0]
            if not number:
                continue
            if number == errno.ERESTART:
                raise StaleGenerationError("nf_tables has changed meanwhile")
            message = messages[sequence - 1] if 0 < sequence <= len(messages) else None
            said, offset = _extended(body, flags)
            reason = f"{os.strerror(number)}: {said}" if said else os.strerror(number)
            raise RefusedError(reason, number, message, offset)

    def _pending(self) -> Iterator[tuple[bytes, int, int, int]]:
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise BackendError("nf_tables sent more errors than fit the buffer") from error
                raise BackendError(f"nf_tables: {os.strerror(error.errno or 0)}") from error
            yield from _split(data)

    def _discard(self) -> None:
        """Forget answers that an interrupted conversation left behind."""
        for _ in self._pending():
            pass

    def generation(self) -> int:
        """The present generation; every transaction of anybody makes it another one.

        Raises:
            BackendError: the kernel did not say.
        """
        for body in self._ask(nft.GET_GENERATION, 0):
            return generation(body)
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
        self._discard()
        found: list[bytes] = []
        try:
            self._socket.send(request(kind, flags, self.family, attributes))
            while not self._take_answer(self._socket.recv(_RECEIVE), found, dump=bool(flags)):
                pass
        except OSError as error:
            raise BackendError(f"nf_tables: {os.strerror(error.errno or 0)}") from error
        return found

    def _take_answer(self, data: bytes, found: list[bytes], *, dump: bool) -> bool:
        """Add what a datagram has to ``found``; whether the answer is complete."""
        for body, kind, _, flags in _split(data):
            if dump and flags & nft.FLAG_INTERRUPTED:
                self._discard()
                raise InterruptedDumpError
            if kind in {nft.ERROR, nft.DONE}:
                number = -_CODE.unpack_from(body)[0] if len(body) >= _CODE.size else 0
                if number == errno.EINTR:
                    raise InterruptedDumpError
                if number:
                    raise RefusedError(os.strerror(number), number, None, 0)
                return True
            found.append(body[_FAMILY_HEADER:])
            if not dump:
                return True
        return False


def _split(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """The messages of a datagram: what follows the header, type, sequence number and flags."""
    start = 0
    while start + MESSAGE_HEADER.size <= len(data):
        size, kind, flags, sequence, _ = MESSAGE_HEADER.unpack_from(data, start)
        yield data[start + MESSAGE_HEADER.size : start + size], kind, sequence, flags
        start += (max(size, MESSAGE_HEADER.size) + 3) & ~3


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
