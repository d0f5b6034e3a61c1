"""Parses the kernel's list of IPVS connections for the templates of persistent clients. Pure."""

from collections.abc import Iterable
from ipaddress import ip_address

from svcproxy.explain.core.ipvs_rules import template_key
from svcproxy.explain.core.packet import target_text
from svcproxy.model.names import IPFamily

_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp", "SCT": "sctp"}
_FIELDS = 7


def templates(lines: Iterable[str], family: IPFamily) -> dict[bytes, str]:
    """Return the real server of each persistent client, by the key that a trace uses.

    A template has client port 0. Lines of another form, and of the other family, are skipped.

    Args:
        lines: lines of ``/proc/net/ip_vs_conn``: protocol, then address and port in hexadecimal of
            the client, of the virtual server and of the real server.
        family: the IP family.
    """
    found: dict[bytes, str] = {}
    for line in lines:
        fields = line.split(maxsplit=_FIELDS)
        if len(fields) < _FIELDS or fields[2] != "0000" or fields[0] not in _PROTOCOLS:
            continue
        try:
            client, virtual, real = (_packed(fields[n], family) for n in (1, 3, 5))
            target = target_text(virtual, int(fields[4], 16))
            key = template_key(_PROTOCOLS[fields[0]], target, client)
            found[key] = target_text(real, int(fields[6], 16))
        except ValueError:
            continue
    return found


def _packed(text: str, family: IPFamily) -> bytes:
    """Return an address of a family.

    Raises:
        ValueError: it is of the other family, or malformed.
    """
    if family is IPFamily.IPV4:
        packed = bytes.fromhex(text)
        if len(packed) != family.bits // 8:
            raise ValueError(text)
        return packed
    address = ip_address(text.strip("[]"))
    if address.version != 6:
        raise ValueError(text)
    return address.packed
