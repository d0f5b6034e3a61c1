"""The only place in svcproxy that opens netlink sockets."""

import contextlib
import ctypes
import errno
import socket
import sys
from struct import Struct
from typing import Self

from svcproxy.limits import NETLINK_DATAGRAM_BYTES, NETLINK_TIMEOUT_SECONDS
from svcproxy.netlink.errors import (
    BufferOverrunError,
    MalformedError,
    NetlinkError,
    TimedOutError,
)
from svcproxy.refusals import REFUSALS

ROUTE, NETFILTER, GENERIC = 0, 12, 16
"""The netlink protocols that svcproxy uses (``NETLINK_ROUTE`` etc.)."""

RECEIVE_BUFFER_BYTES = 4 << 20
"""How many bytes of answers the kernel may queue, unless a caller asks for another size."""
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK = 1, 10, 11
_ATTACH_FILTER, _SNDBUFFORCE, _RCVBUFFORCE, _NAMESPACE_COOKIE = 26, 32, 33, 71
_MAX_BUFFER = (1 << 31) - 1
_TIMEVAL = Struct("@ll")
_TIMED_OUT = frozenset({errno.EAGAIN, errno.ETIMEDOUT})
"""EAGAIN from a blocking socket means that SO_RCVTIMEO or SO_SNDTIMEO expired."""


class NetlinkSocket:
    """A netlink socket in the network namespace of the thread that opens it; for one thread.

    It accepts messages from the kernel only, not from other processes.

    Args:
        protocol: ``ROUTE``, ``NETFILTER`` or ``GENERIC``.
        timeout_seconds: how long to wait for an answer; ``NETLINK_TIMEOUT_SECONDS`` by default.
        receive_buffer_bytes: how many bytes of messages the kernel may queue; 0 for its default.
        datagram_bytes: the longest datagram that is accepted.
        extended_errors: ask the kernel for error texts and offsets (``NETLINK_EXT_ACK``).

    Attributes:
        buffer: the datagram that ``receive_size`` received last.

    Raises:
        NetlinkError: the kernel does not support the protocol, or no descriptor is free.
    """

    def __init__(
        self,
        protocol: int,
        *,
        timeout_seconds: float | None = None,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        datagram_bytes: int = NETLINK_DATAGRAM_BYTES,
        extended_errors: bool = False,
    ) -> None:
        self._protocol = protocol
        self._timeout = NETLINK_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        self._receive_buffer = receive_buffer_bytes
        self._extended_errors = extended_errors
        self._identity: tuple[int, int] | None = None
        self.buffer = memoryview(bytearray(datagram_bytes))
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, port_id: int = 0) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol
            )
            try:
                self._configure(port_id)
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            raise _translated(error) from error

    def _configure(self, port_id: int) -> None:
        made = self._socket
        if port_id:
            # If another socket took the port id, the kernel chooses one, and events of our changes
            # look like those of another process.
            with contextlib.suppress(OSError):
                made.bind((port_id, 0))
        # Accept messages from port id 0, the kernel, only. This also binds an unbound socket.
        made.connect((0, 0))
        # Kernel time-outs are cheaper than Python's, which need a poll before each call.
        seconds = int(self._timeout)
        timeout = _TIMEVAL.pack(seconds, int((self._timeout - seconds) * 1_000_000))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        made.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        if self._extended_errors:
            made.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        if self._receive_buffer:
            self._set_buffer(_RCVBUFFORCE, socket.SO_RCVBUF, self._receive_buffer)

    def _set_buffer(self, forced: int, limited: int, size: int) -> None:
        """Set a buffer size; without CAP_NET_ADMIN, the sysctls ``net.core.*mem_max`` limit it."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, min(size, _MAX_BUFFER // 2))
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, limited, size)

    def set_send_buffer(self, size: int) -> None:
        """Let a datagram of ``size`` bytes, including the kernel's overhead, fit into one send."""
        try:
            self._set_buffer(_SNDBUFFORCE, socket.SO_SNDBUF, size)
        except OSError as error:
            raise _translated(error) from error

    def attach_filter(self, instructions: bytes) -> None:
        """Have the kernel drop messages for this socket with a classic BPF program."""
        held = ctypes.create_string_buffer(instructions, len(instructions))
        program = _FilterProgram(len(instructions) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(program))

    def join(self, group: int) -> None:
        """Subscribe to the events of a multicast group.

        Raises:
            NetlinkError: the kernel does not permit it.
        """
        try:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            raise _translated(error) from error

    @property
    def port_id(self) -> int:
        """The socket's netlink address; events name it as the source of a change."""
        address: tuple[int, int] = self._socket.getsockname()
        return address[0]

    @property
    def namespace(self) -> int:
        """The network namespace's cookie (Linux 5.14); before that, a unique negative number."""
        try:
            cookie = self._socket.getsockopt(socket.SOL_SOCKET, _NAMESPACE_COOKIE, 8)
        except OSError:
            return -self.port_id
        return int.from_bytes(cookie, sys.byteorder)

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def replace_after(self, error: NetlinkError) -> None:
        """Replace the socket after a failed conversation.

        The kernel may still be in the middle of a dump and would refuse another one on the same
        socket, and a late answer must not be mistaken for the answer to a later request. The new
        socket has the port id of the first one, by which watchers recognize our own events.

        If this fails, the reason is added to ``error``, and the next failed conversation tries
        again.
        """
        if isinstance(error, MalformedError):
            REFUSALS.count("netlink", "malformed")
        try:
            if self._identity is None:
                self._identity = self.port_id, self.namespace
            self._socket.close()
            port_id, namespace = self._identity
            self._open(port_id)
        except OSError as failure:  # for example, no free descriptor
            error.strerror = f"{error}; cannot open another netlink socket: {failure.strerror}"
            return
        if namespace > 0 and self.namespace != namespace:
            self._socket.close()
            error.strerror = f"{error}; the thread moved to another network namespace"

    def send(self, data: bytes) -> None:
        """Send one datagram.

        Raises:
            NetlinkError: the kernel did not take it.
        """
        try:
            self._socket.send(data)
        except OSError as error:
            raise _translated(error) from error

    def receive_size(self) -> int:
        """Receive a datagram into ``buffer`` and return its size.

        Raises:
            TimedOutError: none arrived in time.
            BufferOverrunError: the kernel dropped messages for lack of buffer space.
            MalformedError: the datagram is longer than ``buffer``.
            NetlinkError: the socket failed otherwise.
        """
        try:
            # With MSG_TRUNC the result is the datagram's full length, even if it was truncated.
            size = self._socket.recv_into(self.buffer, 0, socket.MSG_TRUNC)
        except OSError as error:
            raise _translated(error) from error
        if size > len(self.buffer):
            raise MalformedError(f"datagram of {size} bytes")
        return size

    def receive(self) -> bytes:
        """Receive a datagram; errors are those of ``receive_size``."""
        return self.buffer[: self.receive_size()].tobytes()

    def receive_queued(self) -> bytes | None:
        """Return a datagram that has already arrived, ``None`` if there is none.

        Raises:
            BufferOverrunError: the kernel dropped messages for lack of buffer space.
            MalformedError: the datagram is longer than ``buffer``.
            NetlinkError: the socket failed otherwise.
        """
        try:
            size = self._socket.recv_into(self.buffer, 0, socket.MSG_DONTWAIT | socket.MSG_TRUNC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _translated(error) from error
        if size > len(self.buffer):
            raise MalformedError(f"datagram of {size} bytes")
        return self.buffer[:size].tobytes()


def _translated(error: OSError) -> NetlinkError:
    number = error.errno or 0
    if number == errno.ENOBUFS:
        REFUSALS.count("netlink", "enobufs")
        return BufferOverrunError()
    if number in _TIMED_OUT:
        return TimedOutError()
    return NetlinkError(number)


class _FilterProgram(ctypes.Structure):
    """``struct sock_fprog``: the number of instructions and their address."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))
