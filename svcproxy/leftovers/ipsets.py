"""Listing and destroying ipsets by name, with two messages of ipset's netlink protocol.

Not with pyroute2 as in iptables mode: importing it costs 35 MB for as long as the daemon runs, and
most nodes have no ipset to remove. Numbers are from ``linux/netfilter/ipset/ip_set.h``.
"""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from struct import Struct

from svcproxy.backends.base import BackendError
from svcproxy.netlink.attributes import MalformedError, attribute, collect, string

_NETFILTER = 12
_SUBSYSTEM = 6
_DESTROY, _LIST = 3, 7
_PROTOCOL_OF, _NAME_OF, _FLAGS_OF = 1, 2, 6
_PROTOCOL = 6
_NAMES_ONLY = 1 << 1  # IPSET_FLAG_LIST_SETNAME
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = Struct("=IHHII")
_FAMILY_HEADER = bytes((socket.AF_INET, 0, 0, 0))
_CODE = Struct("=i")
_RECEIVE = 1 << 16
_NO_SUCH_SET = {errno.ENOENT}
_TIMEOUT = 5.0


class Ipsets:
    """One conversation with the kernel's ipset; for one thread.

    Raises:
        BackendError: the kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER
            )
        except OSError as error:
            raise BackendError(f"no netfilter netlink: {error.strerror}") from error
        self._socket.settimeout(_TIMEOUT)

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def names(self) -> frozenset[str]:
        """The names of all sets; none if the kernel has no ipset.

        Raises:
            BackendError: the kernel does not let us look.
        """
        flags = attribute(_FLAGS_OF, _NAMES_ONLY.to_bytes(4, "big"))
        found = set()
        try:
            for attributes in self._ask(_LIST, _DUMP, flags):
                found.add(string(collect(attributes).get(_NAME_OF, b"")))
        except (OSError, MalformedError) as error:
            if getattr(error, "errno", 0) in {errno.EINVAL, errno.EOPNOTSUPP}:
                return frozenset()  # how nfnetlink answers for a subsystem that it does not have
            raise BackendError(f"cannot list ipsets: {error}") from error
        return frozenset(found - {""})

    def destroy(self, names: Iterable[str]) -> int:
        """Destroy sets, and give their number; one that is gone already is no error.

        Raises:
            BackendError: one is still in use, or the kernel does not let us; the others are gone.
        """
        destroyed, refused = 0, []
        for name in sorted(names):
            try:
                list(self._ask(_DESTROY, _ACK, attribute(_NAME_OF, name.encode() + b"\0")))
                destroyed += 1
            except OSError as error:
                if error.errno not in _NO_SUCH_SET:
                    refused.append(f"{name} ({os.strerror(error.errno or 0)})")
        if refused:
            raise BackendError(f"cannot destroy the ipsets {', '.join(refused)}")
        return destroyed

    def _ask(self, command: int, flags: int, attributes: bytes) -> Iterator[bytes]:
        body = _FAMILY_HEADER + attribute(_PROTOCOL_OF, bytes((_PROTOCOL,))) + attributes
        kind = _SUBSYSTEM << 8 | command
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0)
        self._socket.sendto(header + body, (0, 0))
        while True:
            for found, answer in _split(self._socket.recv(_RECEIVE)):
                if found in {_ERROR, _DONE}:
                    number = -_CODE.unpack_from(answer)[0] if len(answer) >= _CODE.size else 0
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield answer[len(_FAMILY_HEADER) :]


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of a datagram: type and what follows netlink's header."""
    start = 0
    while start + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, start)
        yield kind, data[start + _HEADER.size : start + size]
        start += (max(size, _HEADER.size) + 3) & ~3
