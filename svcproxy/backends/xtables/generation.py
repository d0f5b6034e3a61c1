"""Has anybody changed nftables since we looked? The kernel counts generations.

Every nftables transaction in a network namespace, those of iptables' nft variant included, raises
one number (``NFT_MSG_GETGEN``, Linux 4.10). Asking for it takes some 10 µs; reading 10,000
Services' rules back to compare them takes a second.
"""

import errno
import os
import socket
from struct import Struct

from svcproxy.model.names import IPFamily
from svcproxy.netlink.connection import NETFILTER
from svcproxy.netlink.core.attributes import MalformedError, collect, text
from svcproxy.netlink.core.messages import (
    ERROR,
    FLAG_ACK,
    FLAG_CREATE,
    Message,
    Request,
    encode,
    messages,
)

_NFGENMSG = Struct(">BBH")
_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN = 16
_NEWTABLE, _GETGEN = _NFNL_SUBSYS_NFTABLES << 8, _NFNL_SUBSYS_NFTABLES << 8 | 16
_NFTA_GEN_ID = _NFTA_TABLE_NAME = 1
_FAMILIES = {IPFamily.IPV4: socket.AF_INET, IPFamily.IPV6: socket.AF_INET6}


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
    try:
        answer = _answer(encode(Request(_GETGEN, 0, bytes(4)), 1))
    except OSError:
        return None
    if answer.kind == ERROR:
        return None
    try:
        found = collect(answer.body, _NFGENMSG.size).get(_NFTA_GEN_ID)
    except MalformedError:
        return None
    return None if found is None else int.from_bytes(found, "big")


def has_tables(family: IPFamily) -> bool:
    """Whether the kernel's nf_tables, if there is one, can have tables for a family.

    It may be built without, and iptables-nft-save then finds nothing and ends well. A batch
    without an end is carried out and taken back (Linux 3.18), so that asking leaves nothing behind.
    Where the kernel does not say (because it is forbidden to ask), it is taken to be able to.
    """
    begin = Request(_NFNL_MSG_BATCH_BEGIN, 0, _NFGENMSG.pack(0, 0, _NFNL_SUBSYS_NFTABLES))
    header, name = (
        _NFGENMSG.pack(_FAMILIES[family], 0, 0),
        text(_NFTA_TABLE_NAME, "svcproxy-asking"),
    )
    table = Request(_NEWTABLE, FLAG_CREATE, header + name)
    try:
        answer = _answer(encode(begin, 1) + encode(table, 1, FLAG_ACK))
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT
    return answer.kind != ERROR or answer.error not in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}


def _answer(data: bytes) -> Message:
    """Send something to the kernel's netfilter; return the first message that it answers.

    Raises:
        OSError: there is no netfilter, or no answer within a second.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as sock:
        sock.settimeout(1.0)
        sock.sendto(data, (0, 0))
        try:
            return next(messages(sock.recv(4096)))
        except (MalformedError, StopIteration) as error:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from error
