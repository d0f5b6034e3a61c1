"""``/proc/net/ip_vs``: all virtual servers with their real servers in one file.

Pure. Reading it costs a fraction of a netlink dump for each virtual server. It does not tell the
flags of schedulers, and gives the persistence time-out in ticks of unknown length; both are in the
netlink dump of the virtual servers. The format is the one of Linux 6.1 and the same since 2.6.28::

    TCP  0A600001:0050 rr persistent 1080000 FFFFFFFF
      -> 0AF40002:1F90      Masq    1      0          0
    TCP  [fd00:0010:0000:0000:0000:0000:0000:0001]:0050 rr
"""

import itertools
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from svcproxy.backends.ipvs.values import RealServerKey, VirtualServerKey
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.addresses import text

RealServersByKey = dict[VirtualServerKey, dict[RealServerKey, int]]

_PROTOCOLS = {protocol.value.encode(): protocol for protocol in Protocol}
_ADDRESSES = {
    IPFamily.IPV4: rb"[0-9A-F]{8}:[0-9A-F]{4}",
    IPFamily.IPV6: rb"\[[0-9a-f:]{39}\]:[0-9A-F]{4}",
}
_SERVERS = {
    family: re.compile(
        rb"^(?:  -> (%b) +\S+ +(\d+)|(TCP|UDP|SCTP) +(%b)|(FWM) )" % (address, address),
        re.MULTILINE,
    )
    for family, address in _ADDRESSES.items()
}
_STABLE = {
    family: re.compile(
        rb"^(?:  -> %b +\S+ +\d+|(?:TCP|UDP|SCTP) +%b .*)" % (address, address), re.MULTILINE
    )
    for family, address in _ADDRESSES.items()
}


def parse(listing: bytes, family: IPFamily) -> RealServersByKey:
    """The weights of the real servers of a family by virtual server; some have none.

    Virtual servers that select by firewall mark are left out.
    """
    found: RealServersByKey = {}
    known: dict[bytes, RealServerKey] = {}  # an endpoint may serve several Services
    servers: dict[RealServerKey, int] = {}
    for real, weight, protocol, virtual, _ in _SERVERS[family].findall(listing):
        if real:
            key = known.get(real)
            if key is None:
                key = known[real] = RealServerKey(*_target(real))
            servers[key] = int(weight)
        else:
            servers = {}  # of a firewall mark, nobody's
            if protocol:
                found[VirtualServerKey(_PROTOCOLS[protocol], *_target(virtual))] = servers
    return found


class ServersFingerprint(NamedTuple):
    """A digest of virtual and real servers, and how many there are of both."""

    digest: bytes
    virtual: int
    real: int


def fingerprint(pieces: Iterable[bytes], family: IPFamily) -> ServersFingerprint:
    """A digest of a family's part that connections do not change, but everything else does.

    It takes the file as it is read, for as a whole it is large and not needed.
    """
    digest = blake2b(digest_size=16)
    virtual = real = 0
    rest = b""
    for piece in itertools.chain(pieces, (b"\n",)):
        lines, newline, rest_of_piece = piece.rpartition(b"\n")
        if newline:
            found = _STABLE[family].findall(rest + lines)
            text_of_all = b"".join(found)
            digest.update(text_of_all)
            arrows = text_of_all.count(b"  -> ")
            virtual, real = virtual + len(found) - arrows, real + arrows
            rest = b""
        rest += rest_of_piece
    return ServersFingerprint(digest.digest(), virtual, real)


def _target(written: bytes) -> tuple[str, int]:
    address, port = written[:-5], int(written[-4:], 16)
    digits = address.translate(None, b"[:]").decode()
    return text(bytes.fromhex(digits)), port
