"""The arguments FROM and TO:PORT[/PROTO] of ``svcproxy trace``. Pure."""

import re
from ipaddress import ip_address

import msgspec

from svcproxy import limits
from svcproxy.model.names import IPFamily, NamespacedName, Protocol

FROM_HELP = (
    "where the packet comes from: an address (with a source port: 10.244.1.7:40000 or"
    " [fd00::7]:40000), a pod (namespace/name, asks the API server), node, or outside"
)
TO_HELP = (
    "where it goes: an address, a Service (namespace/name) or node; a port number, or the name of"
    " a port of the Service; tcp, udp or sctp"
)
NODE, OUTSIDE = "node", "outside"

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"({_LABEL})/([a-z0-9](?:[-.a-z0-9]{{0,251}}[a-z0-9])?)")
_PORT_NAME = re.compile(_LABEL)
_LAST_PORT = 65535


class QuestionError(Exception):
    """The packet cannot be traced; the message is one line that names the remedy."""


class UnknownNameError(QuestionError):
    """There is no such Service, port of a Service, pod or family."""


class Origin(msgspec.Struct, frozen=True):
    """FROM: exactly one of ``address``, ``pod`` and ``word`` is set.

    Attributes:
        address: a canonical address.
        port: the source port; 0 if none is given.
        pod: the name of a pod.
        word: ``node`` or ``outside``.
    """

    address: str = ""
    port: int = 0
    pod: NamespacedName | None = None
    word: str = ""


class Target(msgspec.Struct, frozen=True):
    """TO:PORT[/PROTO]: exactly one of ``address``, ``service`` and ``word`` is set.

    Attributes:
        port: the port number; 0 if ``port_name`` is set.
        port_name: the name of a port of the Service.
        protocol: the protocol; ``None`` if none is given.
        address: a canonical address.
        service: the name of a Service.
        word: ``node``.
    """

    port: int
    port_name: str
    protocol: Protocol | None
    address: str = ""
    service: NamespacedName | None = None
    word: str = ""


def parse_origin(text: str) -> Origin:
    """Parse FROM.

    Raises:
        QuestionError: it is malformed.
    """
    _check_length("FROM", text)
    if text in {NODE, OUTSIDE}:
        return Origin(word=text)
    if found := _NAME.fullmatch(text):
        return Origin(pod=NamespacedName(*found.groups()))
    if address := _address(text):
        return Origin(address=address)
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = _address(host[1:-1] if bracketed else host)
    if address and (":" in address) == bracketed:
        return Origin(address=address, port=_port("FROM", port))
    raise QuestionError(
        f"FROM: {text!r} is neither an address, nor namespace/name of a pod, nor node or outside"
    )


def parse_target(text: str) -> Target:
    """Parse TO:PORT[/PROTO].

    Raises:
        QuestionError: it is malformed.
    """
    _check_length("TO", text)
    host, colon, rest = text.rpartition(":")
    if not colon:
        raise QuestionError(f"TO: {text!r} has no port: add one, for example {text}:80")
    port_text, slash, keyword = rest.partition("/")
    protocol = _protocol(keyword) if slash else None
    number, name = 0, ""
    if port_text.isascii() and port_text.isdigit():
        number = _port("TO", port_text)
    elif _PORT_NAME.fullmatch(port_text):
        name = port_text
    else:
        raise QuestionError(f"TO: {port_text!r} is neither a port number nor the name of a port")
    if found := _NAME.fullmatch(host):
        return Target(number, name, protocol, service=NamespacedName(*found.groups()))
    if name:
        raise QuestionError(f"TO: only a Service has named ports: write a number instead of {name}")
    if host == NODE:
        return Target(number, name, protocol, word=NODE)
    bracketed = host.startswith("[") and host.endswith("]")
    address = _address(host[1:-1] if bracketed else host)
    if address and ":" in address and not bracketed:
        raise QuestionError(f"TO: put the IPv6 address in brackets: [{host}]:{rest}")
    if not address or ("." in address and bracketed):
        raise QuestionError(
            f"TO: {host!r} is neither an address, nor namespace/name of a Service, nor node"
        )
    return Target(number, name, protocol, address=address)


def family_of(origin: Origin, target: Target, option: str | None) -> IPFamily | None:
    """Return the family that the arguments name; ``None`` if they leave it open.

    Raises:
        QuestionError: they name both families.
    """
    found = {_family(each) for each in (origin.address, target.address) if each}
    if option:
        found.add(IPFamily.IPV6 if option == "6" else IPFamily.IPV4)
    if len(found) > 1:
        raise QuestionError("FROM, TO and --family are of different IP families")
    return next(iter(found), None)


def _family(address: str) -> IPFamily:
    return IPFamily.IPV6 if ":" in address else IPFamily.IPV4


def _check_length(which: str, text: str) -> None:
    if len(text) > limits.TRACE_ARGUMENT_CHARACTERS:
        raise QuestionError(f"{which} is longer than {limits.TRACE_ARGUMENT_CHARACTERS} characters")


def _address(text: str) -> str:
    """Return the canonical form of an address; empty if it is none, or has a zone."""
    try:
        found = ip_address(text)
    except ValueError:
        return ""
    if found.version == 6 and found.scope_id is not None:
        return ""
    mapped = found.ipv4_mapped if found.version == 6 else None
    return str(mapped or found)


def _port(which: str, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    if not 0 < number <= _LAST_PORT:
        raise QuestionError(f"{which}: {text!r} is not a port between 1 and {_LAST_PORT}")
    return number


def _protocol(keyword: str) -> Protocol:
    for protocol in Protocol:
        if protocol.keyword == keyword.lower():
            return protocol
    raise QuestionError(f"TO: {keyword!r} is not a protocol: write tcp, udp or sctp")
