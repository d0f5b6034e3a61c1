"""nf_tables over netlink: transactions, single objects and dumps of one family."""

import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import (
    ERROR,
    NetlinkRequest,
    error_number,
    extended_error,
    split,
)
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import generation
from svcproxy.netlink.core.nf_tables.transaction import Message, batch
from svcproxy.netlink.errors import BufferOverrunError, NetlinkError, RequestRefusedError
from svcproxy.netlink.socket import NETFILTER

_OVERHEAD_BYTES = 64 << 10


class RefusedMessage(NamedTuple):
    """A message of a transaction that the kernel refused.

    Attributes:
        reason: the text of the error number, with the kernel's own text if it sent one.
        number: the error number.
        message: the message; ``None`` if unknown.
        offset: the position of the offending attribute in it; 0 if unknown.
    """

    reason: str
    number: int
    message: Message | None
    offset: int


class TransactionRefusedError(NetlinkError):
    """The kernel refused a transaction and executed none of it.

    Attributes:
        refused: every refused message, in order. Within one message the kernel stops at the first
            element that it refuses.
    """

    def __init__(self, refused: Sequence[RefusedMessage]) -> None:
        super().__init__(refused[0].number, refused[0].reason)
        self.refused = tuple(refused)


class GenerationChangedError(NetlinkError):
    """nf_tables changed after the generation on which a transaction depends (ERESTART)."""

    def __init__(self) -> None:
        super().__init__(errno.ERESTART, "nf_tables has changed meanwhile")


class NfTables:
    """The nf_tables of one family in the network namespace of the calling thread.

    Only one thread may use it.

    Raises:
        NetlinkError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self._client = NetlinkClient(NETFILTER, extended_errors=True)
        self._socket = self._client.socket
        self._header = nft.FAMILY_HEADER.pack(FAMILY_NUMBERS[family], 0, 0)
        self._send_buffer = 0
        self.port_id = self._socket.port_id
        """The socket's netlink address; events name it as the source of a change."""
        self.namespace = self._socket.namespace
        """A number that only sockets in the same network namespace share (Linux 5.14)."""

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    def transact(
        self, messages: Sequence[Message], generation: int = 0, *, check: bool = False
    ) -> None:
        """Have the kernel execute a transaction completely or not at all.

        Args:
            messages: the messages of the transaction.
            generation: refuse the transaction if nf_tables has changed since this generation; 0
                for any generation.
            check: validate the transaction without executing it.

        Raises:
            GenerationChangedError: the generation is another one by now.
            TransactionRefusedError: the kernel refused.
            NetlinkError: sending failed; it is unknown whether the transaction was executed.
        """
        data = batch(messages, self.family, generation, end=not check)
        try:
            self._send(data)
            refused = self._refused(messages)
        except NetlinkError as error:
            self._socket.replace_after(error)
            self._send_buffer = 0
            error.add_context(f"nf_tables transaction of {len(data)} bytes")
            raise
        if refused:
            if any(one.number == errno.ERESTART for one in refused):
                raise GenerationChangedError
            raise TransactionRefusedError(refused)

    def _send(self, data: bytes) -> None:
        # A transaction is one datagram and must fit into the send buffer with its overhead.
        if len(data) > self._send_buffer:
            self._socket.set_send_buffer(len(data) + _OVERHEAD_BYTES)
            self._send_buffer = len(data) + _OVERHEAD_BYTES
        self._socket.send(data)

    def _refused(self, messages: Sequence[Message]) -> list[RefusedMessage]:
        """Collect the refused messages: the kernel has queued all answers when ``send`` returns.

        If the answers overflow the receive buffer, the first ones suffice: the caller leaves out
        what they name, and the next attempt reveals the others.
        """
        found: list[RefusedMessage] = []
        overrun: BufferOverrunError | None = None
        while True:
            try:
                data = self._socket.receive_queued()
            except BufferOverrunError as error:
                overrun = error
                continue
            if data is None:
                break
            found += _refused_in(data, messages)
        if overrun is not None and not found:
            raise overrun
        return found

    def generation(self) -> int:
        """Return the current generation; every transaction of any process increments it.

        Raises:
            NetlinkError: the kernel did not return it.
        """
        answer = self._client.get(
            NetlinkRequest(nft.message_type(nft.GET_GENERATION), 0, self._header)
        )
        return generation(answer.body[nft.FAMILY_HEADER.size :])

    def get(self, kind: int, attributes: bytes) -> bytes | None:
        """Return the attributes of one object, ``None`` if there is none.

        Raises:
            NetlinkError: the kernel refused or did not answer.
        """
        request = NetlinkRequest(nft.message_type(kind), 0, self._header + attributes)
        try:
            return self._client.get(request).body[nft.FAMILY_HEADER.size :]
        except RequestRefusedError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def dump(self, kind: int, attributes: bytes = b"") -> list[bytes]:
        """Return the attributes of all objects of a kind.

        Raises:
            InterruptedDumpError: a transaction during the dump made it inconsistent.
            NetlinkError: the kernel refused or did not answer.
        """
        request = NetlinkRequest(nft.message_type(kind), 0, self._header + attributes)
        found: list[bytes] = []
        self._client.dump_each(request, found.append, nft.FAMILY_HEADER.size)
        return found


def _refused_in(data: bytes, messages: Sequence[Message]) -> Iterator[RefusedMessage]:
    """Yield the refusals in one datagram of answers to a transaction."""
    for kind, flags, sequence, start, end in split(data):
        number = error_number(data, start, end) if kind == ERROR else 0
        if not number:
            continue
        message = messages[sequence - 1] if 0 < sequence <= len(messages) else None
        text, offset = extended_error(data[start:end], flags)
        reason = f"{os.strerror(number)}: {text}" if text else os.strerror(number)
        yield RefusedMessage(reason, number, message, offset)
