"""Parses values of settings as kube-proxy does: durations, addresses, ranges, choices.

Each parser takes text and returns a value, or raises ``ValueError`` with a reason and, where it
helps, an example.
"""

import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple, TypeVar

from svcproxy.model.names import IPFamily, NamespacedName

NODE_PORT_PRIMARY = "primary"

_SOCKET_PATH_BYTES = 90  # sun_path has 108; the socket is created under a longer name


class Bind(NamedTuple):
    """An IP address and TCP port to listen on; ``host`` is canonical, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- Go durations -----------------------------------------------------------------------------

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_NANOSECONDS = 2**63 - 1  # Go keeps durations in an int64


def parse_duration(text: str) -> float:
    """Parse a Go duration such as ``1m30s`` or ``100ms``; return seconds.

    Raises:
        ValueError: ``text`` is not a duration, or exceeds Go's maximum (292 years).
    """
    problem = "not a duration; write for example 30s, 1m30s or 100ms"
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits == "0":
        return 0.0
    total, position = Fraction(0), 0
    while match := _DURATION_PART.match(digits, position):
        total += Fraction(match[1]) * _NANOSECONDS[match[2]]
        position = match.end()
    if position == 0 or position != len(digits) or total > _MAX_NANOSECONDS:
        raise ValueError(problem)
    return sign * int(total) / 1_000_000_000


def format_duration(seconds: float) -> str:
    """Format seconds as Go prints a duration: ``1h0m0s``, ``1.5s``, ``100ms``, ``0s``."""
    nanoseconds = round(seconds * 1_000_000_000)
    sign, nanoseconds = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, size, limit in (("ns", 1, 10**3), ("\u00b5s", 10**3, 10**6), ("ms", 10**6, 10**9)):
        if nanoseconds < limit:
            return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, _NANOSECONDS["m"])
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{lead}{_decimal(rest, _NANOSECONDS['s'])}s"


def _decimal(value: int, size: int) -> str:
    """Return ``value / size`` exactly, without trailing zeros; ``size`` is a power of ten."""
    whole, rest = divmod(value, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


# --- Other values -----------------------------------------------------------------------------


def parse_bool(text: str) -> bool:
    """Parse a boolean as Go's flag parser does.

    Raises:
        ValueError: ``text`` is not one of Go's spellings.
    """
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise ValueError("not a boolean; write true or false")


def parse_bind(text: str, default_port: int) -> Bind | None:
    """Parse ``address:port``, ``[address]:port`` or a bare address; ``None`` for empty text.

    Raises:
        ValueError: the address is not an IP address, or the port is outside 1 to 65535.
    """
    if not text:
        return None
    remedy = f'write for example 127.0.0.1:{default_port}, [::]:{default_port}, or "" to disable'
    host, port = text, str(default_port)
    try:
        ipaddress.ip_address(_without_leading_zeros(text))
    except ValueError:
        match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):([0-9]+)", text)
        if match is None:
            raise ValueError(f"not an IP address and port; {remedy}") from None
        host, port = match[1] or match[2] or "", match[3]
    try:
        address = ipaddress.ip_address(_without_leading_zeros(host))
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; {remedy}") from None
    if not 1 <= int(port) <= 65535:
        raise ValueError("the port must be from 1 to 65535")
    return Bind(str(address), int(port))


def parse_ip(text: str) -> str:
    """Parse an IP address to its canonical form.

    Raises:
        ValueError: ``text`` is not an IP address.
    """
    try:
        return str(ipaddress.ip_address(_without_leading_zeros(text)))
    except ValueError:
        raise ValueError("not an IP address; write for example 0.0.0.0 or ::") from None


def _without_leading_zeros(text: str) -> str:
    """Read ``010.0.0.1`` as 10.0.0.1, as Kubernetes does (k8s.io/utils/net, ParseIPSloppy)."""
    return text if ":" in text else re.sub(r"(^|\.)0+(?=[0-9])", r"\1", text)


def cidr_family(cidr: str) -> IPFamily:
    """Return the family of a canonical CIDR or address."""
    return IPFamily.IPV6 if ":" in cidr else IPFamily.IPV4


def parse_cidrs(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of CIDRs to canonical ones, with host bits cleared.

    Raises:
        ValueError: an entry is not a CIDR.
    """
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    return tuple(parse_cidr(entry) for entry in entries)


def parse_cidr(text: str) -> str:
    """Parse a CIDR to a canonical one, with host bits cleared.

    Raises:
        ValueError: ``text`` is not a CIDR; an address without a prefix length is not.
    """
    problem = f"{text!r} is not a CIDR; write for example 10.244.0.0/16 or fd00::/48"
    if "/" not in text:  # ipaddress accepts an address without a prefix length, Go does not
        raise ValueError(problem)
    try:
        return str(ipaddress.ip_network(_without_leading_zeros(text), strict=False))
    except ValueError:
        raise ValueError(problem) from None


def parse_cluster_cidrs(text: str) -> tuple[str, ...]:
    """Parse the pod CIDRs, at most one of each family.

    Raises:
        ValueError: an entry is not a CIDR, or a family occurs twice.
    """
    cidrs = parse_cidrs(text)
    if len({cidr_family(cidr) for cidr in cidrs}) != len(cidrs):
        raise ValueError(
            "more than one CIDR of a family; set one IPv4 CIDR, one IPv6 CIDR, or both"
        )
    return cidrs


def parse_nodeport_addresses(text: str) -> tuple[str, ...]:
    """Parse ``primary`` or a list of CIDRs.

    Raises:
        ValueError: an entry is not a CIDR, or ``primary`` is combined with others.
    """
    if NODE_PORT_PRIMARY not in text.split(","):
        return parse_cidrs(text)
    if text != NODE_PORT_PRIMARY:
        raise ValueError("'primary' cannot be combined with CIDRs; set one or the other")
    return (NODE_PORT_PRIMARY,)


_GO_INTEGER = re.compile(
    r"([+-]?)(0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])+|0|[1-9](?:_?[0-9])*)"
)


def parse_integer(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of integers from ``low`` to ``high``, inclusive.

    It accepts Go's spellings: ``0x1f``, ``0b11``, ``0o17``, and 017 as octal.
    """

    def parse(text: str) -> int:
        match = _GO_INTEGER.fullmatch(text)
        if match is not None and len(text) <= 40:
            digits = re.sub("^0(?=[0-9])", "0o", match[2].replace("_", ""))
            value = int(f"{match[1]}{digits}", 0)
            if low <= value <= high:
                return value
        raise ValueError(f"not a whole number from {low} to {high}")

    return parse


def parse_float(text: str) -> float:
    """Parse a decimal number.

    Raises:
        ValueError: ``text`` is not a number.
    """
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", text):
        raise ValueError("not a number; write for example 5 or 0.5")
    return float(text)


def parse_timeout(text: str) -> float:
    """Parse a duration that is not negative; return seconds.

    Raises:
        ValueError: ``text`` is negative or not a duration.
    """
    seconds = parse_duration(text)
    if seconds < 0:
        raise ValueError("must not be negative; 0s leaves the kernel's value alone")
    return seconds


def parse_interface(longest: int) -> Callable[[str], str]:
    """Return a parser of network interface names (``IFNAMSIZ``: at most 15 characters)."""

    def parse(text: str) -> str:
        if len(text) > longest or re.search(r"[\s/:+!\"'\\]", text):
            raise ValueError(f"not a network interface name of at most {longest} characters")
        return text

    return parse


_ChoiceT = TypeVar("_ChoiceT", bound=StrEnum)


def parse_choice(
    choices: type[_ChoiceT], *, empty: _ChoiceT | None = None, available: frozenset[_ChoiceT]
) -> Callable[[str], _ChoiceT]:
    """Return a parser of ``choices``; those not ``available`` are refused with their own message."""
    usable = ", ".join(choice for choice in choices if choice in available)

    def parse(text: str) -> _ChoiceT:
        if text == "" and empty is not None:
            return empty
        if text not in list(choices):
            raise ValueError(f"unknown; choose one of: {usable}")
        if choices(text) not in available:
            raise ValueError(f"not available in this version; choose one of: {usable}")
        return choices(text)

    return parse


def parse_hostname(text: str) -> str | None:
    """Parse a node name: trimmed, in lower case, ``None`` if empty.

    Raises:
        ValueError: there are only spaces.
    """
    if text and not text.strip():
        raise ValueError("only spaces; set it to the name of this node's Node object")
    return text.strip().lower() or None


_SCHEDULERS = (
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh"),
    *("sed", "nq", "fo", "ovf", "mh", "twos"),
)


def parse_scheduler(text: str) -> str:
    """Parse the name of a scheduler of the kernel (net/netfilter/ipvs of Linux 6.12).

    Raises:
        ValueError: the kernel has no such scheduler.
    """
    if text and text not in _SCHEDULERS:
        raise ValueError(f"unknown; choose one of: {', '.join(_SCHEDULERS)}")
    return text


def parse_socket_path(text: str) -> str:
    """Parse the path of a Unix socket: absolute, or empty for none.

    Raises:
        ValueError: ``text`` is not such a path, or longer than a socket's address (``unix(7)``).
    """
    if not text:
        return ""
    if not text.startswith("/") or text.endswith("/") or "\0" in text:
        raise ValueError("not the absolute path of a socket; write for example /run/svcproxy.sock")
    if len(text.encode()) > _SOCKET_PATH_BYTES:
        raise ValueError(f"longer than {_SOCKET_PATH_BYTES} bytes")
    return text


def parse_services(text: str) -> tuple[NamespacedName, ...]:
    """Parse Services as ``namespace/name``, separated by commas.

    Raises:
        ValueError: one of them has another form.
    """
    found = []
    for item in filter(None, map(str.strip, text.split(","))):
        namespace, _, name = item.partition("/")
        if not namespace or not name or "/" in name:
            raise ValueError(f"{printable(item)}: write namespace/name, for example default/web")
        found.append(NamespacedName(namespace, name))
    return tuple(dict.fromkeys(found))


def parse_vmodule(text: str) -> tuple[tuple[str, int], ...]:
    """Parse a list of ``pattern=N``.

    Raises:
        ValueError: an entry has another form.
    """
    items = []
    for entry in text.split(",") if text else ():
        pattern, _, level = entry.partition("=")
        if not (pattern and re.fullmatch(r"[0-9]{1,9}", level)):
            raise ValueError("not a list of PATTERN=NUMBER")
        items.append((pattern, int(level)))
    return tuple(items)


_QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE]|)")


def parse_quantity(text: str) -> str:
    """Check a Kubernetes quantity such as ``64Ki``, and return it unchanged.

    Raises:
        ValueError: ``text`` is not a quantity.
    """
    if not _QUANTITY.fullmatch(text):
        raise ValueError("not a quantity; write for example 0, 512, 1k or 64Ki")
    return text


def parse_hidden_version(text: str) -> str:
    """Parse the version whose hidden metrics are to be shown: it must be the one before 1.36.

    Raises:
        ValueError: it is another version.
    """
    if text not in {"", "1.35"}:
        raise ValueError("only 1.35 is possible, the version before; leave it out")
    return text


def printable(text: str) -> str:
    """Return text for a message: unchanged if it is printable, else with line breaks escaped."""
    return text if text.isprintable() else repr(text)


def parse_text(text: str) -> str | None:
    """Return any text; ``None`` if it is empty."""
    return text or None
