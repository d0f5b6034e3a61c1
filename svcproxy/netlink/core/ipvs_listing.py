"""The format of ``/proc/net/ip_vs``, which lists all virtual servers with their real servers.

Reading the file costs a fraction of one netlink dump for each virtual server. It does not contain
the flags of schedulers, and gives persistence timeouts in ticks (CONFIG_HZ); the netlink dump of
the virtual servers has both. The format of Linux 6.1, unchanged since 2.6.28::

    TCP  0A600001:0050 rr persistent 1080000 FFFFFFFF
      -> 0AF40002:1F90      Masq    1      0          0
    TCP  [fd00:0010:0000:0000:0000:0000:0000:0001]:0050 rr
"""

import re

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)

RealServersByKey = dict[VirtualServerKey, dict[RealServerKey, int]]

_PROTOCOLS = {protocol.value.encode(): protocol for protocol in Protocol}
_MASKS = {IPFamily.IPV4: b"FFFFFFFF", IPFamily.IPV6: b"80000000"}
# Matching takes three quarters of the time of a repeated group.
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
"""Matches the line of a real server without its counters, or the key and properties of a virtual
server. It also matches virtual servers of other protocols, which belong to other programs, so that
their real servers are not attributed to the virtual server before."""
Line = tuple[bytes, bytes, bytes]
"""A match of ``LINES``: either a real server, or the key and the properties of a virtual server; the
other parts are empty."""


def parse_listing(listing: bytes, family: IPFamily) -> RealServersByKey:
    """Return the weights of the real servers of each virtual server of a family.

    Virtual servers that match a firewall mark are skipped.
    """
    found: RealServersByKey = {}
    known: dict[bytes, RealServerKey] = {}  # an endpoint may serve several Services
    servers: dict[RealServerKey, int] = {}
    for real, weight, protocol, virtual, _ in _SERVERS[family].findall(listing):
        if real:
            key = known.get(real)
            if key is None:
                key = known[real] = RealServerKey(*_parse_socket(real))
            servers[key] = int(weight)
        else:
            servers = {}  # discarded for a firewall mark and for the other family
            if protocol:
                found[VirtualServerKey(_PROTOCOLS[protocol], *_parse_socket(virtual))] = servers
    return found


def format_key(key: VirtualServerKey) -> bytes:
    """Return the start of a virtual server's line."""
    return b"%b  %b" % (key.protocol.value.encode(), _format_socket(key.address, key.port))


def parse_key(text: bytes) -> VirtualServerKey | None:
    """Parse the start of a virtual server's line; ``None`` for one that no Service can have."""
    found = _IDENTITY(text)
    return found and VirtualServerKey(_PROTOCOLS[found[1]], *_parse_socket(found[2]))


def format_properties(server: VirtualServer, family: IPFamily, ticks: int) -> bytes:
    """Return the rest of a virtual server's line.

    Args:
        server: its properties. Of its flags, the file shows ``PERSISTENT`` and, for IPv4,
            ``ONE_PACKET`` only.
        family: its family.
        ticks: the kernel's ticks per second (CONFIG_HZ).
    """
    text = b"%b " % server.scheduler.encode()
    if family is IPFamily.IPV4:
        text += b"ops  " if server.flags & ServerFlag.ONE_PACKET else b" "
    if server.flags & ServerFlag.PERSISTENT:
        text += b"persistent %d %b" % (server.timeout * ticks, _MASKS[family])
    return text


def normalize_properties(properties: bytes, family: IPFamily) -> bytes:
    """Normalize the parts that are never compared: blanks, and the mask of persistence."""
    scheduler, *rest = properties.split() or [b""]
    text = scheduler + b" "
    if family is IPFamily.IPV4:
        text += b"ops  " if b"ops" in rest else b" "
    if b"persistent" in rest[:-1]:
        text += b"persistent %b %b" % (rest[rest.index(b"persistent") + 1], _MASKS[family])
    return text


def format_real_server(key: RealServerKey, weight: int) -> bytes:
    """Return the line of a real server as ``LINES`` matches it."""
    return b"%b      Masq    %d" % (_format_socket(*key), weight)


def parse_real_server(line: bytes) -> tuple[RealServerKey, int]:
    """Parse the line of a real server: its key and its weight."""
    target, _, weight = line.split()
    return RealServerKey(*_parse_socket(target)), int(weight)


def _format_socket(address: str, port: int) -> bytes:
    digits = packed(address)
    if len(digits) == 4:
        return b"%b:%04X" % (digits.hex().upper().encode(), port)
    return b"[%b]:%04X" % (digits.hex(":", 2).encode(), port)


def _parse_socket(written: bytes) -> tuple[str, int]:
    address, port = written[:-5], int(written[-4:], 16)
    digits = address.translate(None, b"[:]").decode()
    return text(bytes.fromhex(digits)), port
