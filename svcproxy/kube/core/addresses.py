"""Canonical text of IP addresses and CIDRs, parsed as leniently as kube-proxy does.

The rules are those of Go's ``ParseIPSloppy`` and ``ParseCIDRSloppy`` (``k8s.io/utils/net``): leading
zeros of IPv4 octets are decimal padding, an IPv4-mapped IPv6 address is an IPv4 address, and zones
are refused.
"""

import ipaddress
import re
from functools import lru_cache

from svcproxy import limits
from svcproxy.kube.core.validation import quoted

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
# Almost every address of a cluster is canonical IPv4. A first list of a large cluster has 100,000 of
# them, and ipaddress would take ten times as long to recognise one.
_V4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_canonical_v4 = re.compile(_V4).fullmatch
# Addresses that the API server refuses as an endpoint or external IP
_INVALID_ENDPOINT_V4 = r"0\.0\.0\.0\Z|127\.|169\.254\.|224\.0\.0\."
is_plain_ipv4 = re.compile(rf"(?!{_INVALID_ENDPOINT_V4}){_V4}").fullmatch
"""Matches canonical IPv4 that ``canonical_endpoint_ip`` returns unchanged."""
_invalid_endpoint_ip = re.compile(rf"{_INVALID_ENDPOINT_V4}|::1?\Z|fe[89ab].:|ff.2:").match
_invalid_cluster_ip = re.compile(
    r"0\.0\.0\.0\Z|127\.|22[4-9]\.|23[0-9]\.|255\.255\.255\.255\Z|::1?\Z|ff"
).match
_padded_v4 = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+").fullmatch
_prefix_length = re.compile(r"[0-9]{1,3}").fullmatch
_MAPPED_BITS = 96


def canonical_ip(text: str) -> str:
    """Return the canonical spelling of an IP address.

    Args:
        text: an IPv4 or IPv6 address, without a zone.

    Raises:
        ValueError: the text is not an IP address; the message quotes it.
    """
    if _canonical_v4(text):
        return text
    if len(text) > limits.ADDRESS_CHARACTERS:
        raise ValueError(f"{quoted(text)} is not an IP address")
    return _canonicalise(text)


def canonical_endpoint_ip(text: str) -> str:
    """Return the canonical spelling of an endpoint address or external IP.

    Unspecified, loopback and link-local addresses (unicast and multicast) are refused, as by the
    API server (``ValidateEndpointIP`` in ``pkg/apis/core/validation``): such an endpoint would
    redirect the traffic of a Service to the node itself.

    Raises:
        ValueError: the text is not such an address; the message quotes it.
    """
    if is_plain_ipv4(text):
        return text
    address = canonical_ip(text)
    if _invalid_endpoint_ip(address):
        raise ValueError(f"{address!r} is unspecified, loopback or link-local")
    return address


def canonical_cluster_ip(text: str) -> str:
    """Return the canonical spelling of a cluster IP.

    Unspecified, loopback, multicast and broadcast addresses are refused. The API server never
    assigns one, but a manifest may hold one. nftables mode rejects traffic to the unused ports of
    a cluster IP, so a loopback address would cut off the node's own programs from each other.

    Raises:
        ValueError: the text is not such an address; the message quotes it.
    """
    address = canonical_ip(text)
    if _invalid_cluster_ip(address):
        raise ValueError(f"{address!r} is unspecified, loopback, multicast or broadcast")
    return address


def canonical_cidr(text: str) -> str:
    """Return the canonical spelling of a network: ``10.0.0.7/8`` becomes ``10.0.0.0/8``.

    Raises:
        ValueError: the text is not an address with a prefix length; the message quotes it.
    """
    address, slash, length = text.partition("/")
    if not slash or not _prefix_length(length):
        raise ValueError(f"{quoted(text)} is not a CIDR such as 10.0.0.0/8")
    try:
        ip = canonical_ip(address)
        bits = int(length)
        if ":" in address and ":" not in ip:
            bits -= _MAPPED_BITS
        return str(ipaddress.ip_network(f"{ip}/{bits}", strict=False))
    except ValueError:
        raise ValueError(f"{quoted(text)} is not a CIDR such as 10.0.0.0/8") from None


def is_ipv6(address: str) -> bool:
    """Whether a canonical address or CIDR is IPv6."""
    return ":" in address


@lru_cache(maxsize=4096)
def _canonicalise(text: str) -> str:
    """Canonicalise text that is not canonical IPv4; cached, because relists repeat IPv6 slices."""
    try:
        if _padded_v4(text):
            return _unpadded(text)
        if "%" in text or "/" in text:
            raise ValueError(text)  # noqa: TRY301 - the same message for every defect
        head, colon, tail = text.rpartition(":")
        if _padded_v4(tail):
            text = f"{head}{colon}{_unpadded(tail)}"
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address") from None
    return str(address.ipv4_mapped or address)


def _unpadded(text: str) -> str:
    octets = [int(octet) for octet in text.split(".")]
    if max(octets) > 255:
        raise ValueError(text)
    return ".".join(map(str, octets))
