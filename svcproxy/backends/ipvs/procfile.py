"""``/proc/net/ip_vs``: all virtual servers with their real servers in one file.

Pure. Reading it costs a fraction of a netlink dump for each virtual server. It does not tell the
flags of schedulers, and gives the persistence time-out in ticks of unknown length; both are in the
netlink dump of the virtual servers. The format is the one of Linux 6.1 and the same since 2.6.28::

    TCP  0A600001:0050 rr persistent 1080000 FFFFFFFF
      -> 0AF40002:1F90      Masq    1      0          0
    TCP  [fd00:0010:0000:0000:0000:0000:0000:0001]:0050 rr
"""

import re

from svcproxy.backends.ipvs.values import (
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.addresses import packed, text

RealServersByKey = dict[VirtualServerKey, dict[RealServerKey, int]]

_PROTOCOLS = {protocol.value.encode(): protocol for protocol in Protocol}
_MASKS = {IPFamily.IPV4: b"FFFFFFFF", IPFamily.IPV6: b"80000000"}
# Written out, it matches in three quarters of the time that a repeated group takes
_IPV6 = b":".join([rb"[0-9a-f]{4}"] * 8)
_ADDRESSES = {
    IPFamily.IPV4: rb"[0-9A-F]{8}:[0-9A-F]{4}",
    IPFamily.IPV6: rb"\[%b\]:[0-9A-F]{4}" % _IPV6,
}
_ANY_ADDRESS = b"(?:%b)" % b"|".join(_ADDRESSES.values())
_WEIGHT = rb"\d{1,10}"
_SERVERS = {
    family: re.compile(
        rb"^(?:  -> (%b) +\S+ +(%b)\b|(TCP|UDP|SCTP) +(%b) |([A-Z]))" % (address, _WEIGHT, address),
        re.MULTILINE,
    )
    for family, address in _ADDRESSES.items()
}
_IDENTITY = re.compile(rb"(TCP|UDP|SCTP) +(%b)" % _ANY_ADDRESS).fullmatch
LINES = re.compile(
    rb"^(?:  -> (%b +\S+ +%b)\b|(?!IP Virtual)([A-Z][A-Z_0-9]* +\S+) (.*))"
    % (_ANY_ADDRESS, _WEIGHT),
    re.MULTILINE,
)
"""Its lines: a real server's without counters, or a virtual server's key and its properties.

Virtual servers of protocols that no Service has may be another program's. They are found, so that
their real servers are not taken for those of the virtual server before.
"""
Line = tuple[bytes, bytes, bytes]
"""What ``LINES`` finds: the first is empty, or the other two are."""


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
            servers = {}  # of a firewall mark, or of the other family, nobody's
            if protocol:
                found[VirtualServerKey(_PROTOCOLS[protocol], *_target(virtual))] = servers
    return found


def written(key: VirtualServerKey) -> bytes:
    """How the line of a virtual server begins."""
    return b"%b  %b" % (key.protocol.value.encode(), _written(key.address, key.port))


def identified(written: bytes) -> VirtualServerKey | None:
    """Whose line begins like that; ``None`` for one that no Service can have."""
    found = _IDENTITY(written)
    return found and VirtualServerKey(_PROTOCOLS[found[1]], *_target(found[2]))


def properties(server: VirtualServer, family: IPFamily, ticks: int) -> bytes:
    """How the line of a virtual server goes on.

    Args:
        server: its properties; of its flags, the file tells ``PERSISTENT`` and, for IPv4,
            ``ONE_PACKET`` only.
        family: its family.
        ticks: how many of the kernel's ticks there are in a second (CONFIG_HZ).
    """
    text = b"%b " % server.scheduler.encode()
    if family is IPFamily.IPV4:
        text += b"ops  " if server.flags & ServerFlag.ONE_PACKET else b" "
    if server.flags & ServerFlag.PERSISTENT:
        text += b"persistent %d %b" % (server.timeout * ticks, _MASKS[family])
    return text


def in_usual_form(properties: bytes, family: IPFamily) -> bytes:
    """The same without what is never compared: blanks, and the mask of persistence."""
    scheduler, *rest = properties.split() or [b""]
    text = scheduler + b" "
    if family is IPFamily.IPV4:
        text += b"ops  " if b"ops" in rest else b" "
    if b"persistent" in rest[:-1]:
        text += b"persistent %b %b" % (rest[rest.index(b"persistent") + 1], _MASKS[family])
    return text


def written_real(key: RealServerKey, weight: int) -> bytes:
    """The line of a real server as ``LINES`` finds it."""
    return b"%b      Masq    %d" % (_written(*key), weight)


def identified_real(line: bytes) -> tuple[RealServerKey, int]:
    """Whose line that is, and the weight."""
    target, _, weight = line.split()
    return RealServerKey(*_target(target)), int(weight)


def _written(address: str, port: int) -> bytes:
    digits = packed(address)
    if len(digits) == 4:
        return b"%b:%04X" % (digits.hex().upper().encode(), port)
    return b"[%b]:%04X" % (digits.hex(":", 2).encode(), port)


def _target(written: bytes) -> tuple[str, int]:
    address, port = written[:-5], int(written[-4:], 16)
    digits = address.translate(None, b"[:]").decode()
    return text(bytes.fromhex(digits)), port
