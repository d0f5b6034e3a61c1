"""Has anybody changed nftables since we looked? The kernel counts generations.

Every nftables transaction in a network namespace, those of iptables' nft variant included, raises
one number (``NFT_MSG_GETGEN``, Linux 4.10). Asking for it takes some 10 µs; reading 10,000
Services' rules back to compare them takes a second.
"""

import errno
import socket
import struct

from svcproxy.model.names import IPFamily

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN = 16
_NEWTABLE = _NFNL_SUBSYS_NFTABLES << 8
_FAMILIES = {IPFamily.IPV4: socket.AF_INET, IPFamily.IPV6: socket.AF_INET6}
_GETGEN = _NFNL_SUBSYS_NFTABLES << 8 | 16
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_NLMSG_ERROR = 2
_NFTA_GEN_ID = 1


class Watermark:
    """The generation up to which every change is known to be ours.

    Another process may commit between our reading and our writing, and its change would hide
    behind ours. So a generation is trusted only if it is the one that was read, or that one plus
    at most as many as we committed.
    """

    def __init__(self) -> None:
        self._known: int | None = None

    def reading(self) -> None:
        """Note that everything is about to be read."""
        self._known = generation()

    def writing(self) -> None:
        """Note that something is about to be written; what others did before is not known."""
        if self._known is not None and generation() != self._known:
            self._known = None

    def written(self, commits: int) -> None:
        """Note that at most ``commits`` transactions of ours have come since ``writing``."""
        now = generation()
        if self._known is not None and now is not None:
            self._known = now if now - self._known <= commits else None

    @property
    def untouched(self) -> bool:
        """Whether nobody else has changed anything since the last reading."""
        return self._known is not None and generation() == self._known


def generation() -> int | None:
    """The present generation of this network namespace; ``None`` if the kernel does not tell."""
    header = struct.pack("=IHHII", 20, _GETGEN, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(1.0)
            sock.sendto(header + bytes(4), (0, 0))
            return _identifier(sock.recv(4096))
    except OSError:
        return None


def has_tables(family: IPFamily) -> bool:
    """Whether the kernel's nf_tables, if there is one, can have tables for a family.

    It may be built without, and iptables-nft-save then finds nothing and ends well. A batch
    without an end is carried out and taken back (Linux 3.18), so that asking leaves nothing behind.
    Where the kernel does not say (because it is forbidden to ask), it is taken to be able to.
    """
    begin = _message(_NFNL_MSG_BATCH_BEGIN, 0, struct.pack(">BBH", 0, 0, _NFNL_SUBSYS_NFTABLES))
    name = struct.pack("=HH", 4 + 16, 1) + b"svcproxy-asking\0"
    table = struct.pack(">BBH", _FAMILIES[family], 0, 0) + name
    batch = begin + _message(_NEWTABLE, _NLM_F_CREATE | _NLM_F_ACK, table)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(1.0)
            sock.sendto(batch, (0, 0))
            answer = sock.recv(4096)
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT
    (kind,) = struct.unpack_from("=4xH", answer)
    (number,) = struct.unpack_from("=i", answer, 16)
    return kind != _NLMSG_ERROR or -number not in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST, 1, 0) + body


def _identifier(answer: bytes) -> int | None:
    length, kind = struct.unpack_from("=IH", answer)
    if kind == _NLMSG_ERROR:
        return None
    position = 20  # behind the headers of netlink and nfnetlink
    while position + 4 <= min(length, len(answer)):
        size, attribute = struct.unpack_from("=HH", answer, position)
        if attribute == _NFTA_GEN_ID and size == 8:
            (number,) = struct.unpack_from(">I", answer, position + 4)
            return int(number)
        position += max(4, size + 3 & ~3)
    return None
