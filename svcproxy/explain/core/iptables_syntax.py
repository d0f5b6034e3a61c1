"""Parses rules as iptables-save prints them: the matches and targets that svcproxy uses.

Parsing any other match or target fails: a trace that skipped it would be wrong.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from svcproxy.explain.core.bpf import Program
from svcproxy.explain.core.packet import NUMBERS, Flow, UnknownRuleError, parse_target

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_MODULES = frozenset(
    [
        "comment",
        "tcp",
        "udp",
        "sctp",
        "mark",
        "addrtype",
        "statistic",
        "conntrack",
        "bpf",
        "recent",
        "set",
        "nfacct",
        "ipvs",
    ]
)
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "--comment": (),
    "--nfacct-name": (),
    "--seconds": (),
    "--mode": ("random",),
    "--mask": ("255.255.255.255", ":".join(["ffff"] * 8)),
}
"""Options that do not affect whether the first packet of a connection matches.

Each has the values for which that is true; an empty tuple means all values."""
_SWITCHES = frozenset(("--reap", "--rsource"))
_ACTIONS = {
    "ACCEPT": (),
    "DROP": (),
    "REJECT": ("--reject-with",),
    "RETURN": (),
    "DNAT": ("--to-destination",),
    "MARK": ("--set-xmark",),
    "MASQUERADE": ("--random-fully",),
    "SET": ("--add-set", "--exist", "--timeout"),
}
"""The targets, each with its supported options."""


class Facts(NamedTuple):
    """Callbacks for matches that depend on more than the packet.

    Attributes:
        is_local: whether the node takes an address for its own.
        member: whether an ipset has the packet's values of the given fields (``src``, ``dst``).
    """

    is_local: Callable[[bytes], bool]
    member: Callable[[str, tuple[str, ...], Flow], bool]


Match = Callable[[Flow, Facts], bool]


class Rule(NamedTuple):
    """One parsed rule.

    Attributes:
        text: the rule without ``-A CHAIN``.
        matches: all of them must hold.
        probability: how likely the rule applies if they hold.
        target: the name of a target or chain; empty for a rule that only counts.
        mark: for ``MARK``: the bits to flip, and the bits to clear before that.
        endpoint: for ``DNAT``: the new address and port.
        remember: for ``SET`` and ``recent --set``: the set that gets the source, and the seconds.
    """

    text: str
    matches: tuple[Match, ...]
    probability: float
    target: str
    mark: tuple[int, int] = (0, 0)
    endpoint: tuple[bytes, int] = (b"", 0)
    remember: tuple[str, int] = ("", 0)

    def holds(self, flow: Flow, facts: Facts) -> bool:
        """Return whether all matches hold, except for ``statistic``."""
        return all(match(flow, facts) for match in self.matches)


def parse_rule(text: str, chains: Collection[str]) -> Rule:
    """Parse a rule without its ``-A CHAIN``.

    Args:
        text: the rule.
        chains: the chains of the table, to which rules may jump.

    Raises:
        UnknownRuleError: the rule has a match or a target that is not supported.
    """
    try:
        return _Parser(text).parse(chains)
    except (ValueError, StopIteration, LookupError) as error:
        raise UnknownRuleError(f"cannot parse {text!r}") from error


class _Parser:
    """Reads one rule from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: Iterator[str] = iter(_TOKEN.findall(text))
        self._matches: list[Match] = []
        self._probability = 1.0
        self._negated = False
        self._recent: list[str] = []

    def parse(self, chains: Collection[str]) -> Rule:
        """Return the parsed rule."""
        for option in self._tokens:
            if option == "!":
                self._negated = True
                continue
            if option == "-j":
                return self._finish(next(self._tokens), chains)
            self._option(option)
            self._negated = False
        return self._finish("", chains)

    def _option(self, option: str) -> None:
        match option:
            case "-m":
                self._module(next(self._tokens))
            case "--probability":
                self._probability = float(next(self._tokens))
            case "--match-set":
                self._add(_in_set(next(self._tokens), next(self._tokens)))
            case "--set" | "--rcheck":
                self._recent.append(option)
            case "--name":
                self._name(next(self._tokens))
            case _ if option in _CONDITIONS:
                self._add(_CONDITIONS[option](next(self._tokens)))
            case _ if option in _IGNORED:
                self._ignore(next(self._tokens), _IGNORED[option])
            case _ if option not in _SWITCHES:
                raise self._unknown("option", option)

    def _module(self, name: str) -> None:
        if name not in _MODULES:
            raise self._unknown("match", name)

    def _ignore(self, value: str, known: tuple[str, ...]) -> None:
        if known and value not in known:
            raise self._unknown("value", value)

    def _name(self, name: str) -> None:
        if "--rcheck" in self._recent:
            self._add(_in_set(name, "src"))
        self._recent.append(name)

    def _add(self, match: Match) -> None:
        if self._negated:
            self._matches.append(lambda flow, facts: not match(flow, facts))
        else:
            self._matches.append(match)

    def _finish(self, target: str, chains: Collection[str]) -> Rule:
        if target and target not in _ACTIONS and target not in chains:
            raise self._unknown("target", target)
        options = list(self._tokens)
        for option in options:
            if option.startswith("--") and option not in _ACTIONS.get(target, ()):
                raise self._unknown("option", option)
        rule = Rule(self._text, tuple(self._matches), self._probability, target)
        if self._recent[:1] == ["--set"]:
            rule = rule._replace(remember=(self._recent[1], 0))
        if target == "DNAT":
            return rule._replace(endpoint=parse_target(self._value("--to-destination", options)))
        if target == "MARK":
            value, mask = self._value("--set-xmark", options).split("/")
            return rule._replace(mark=(int(value, 16), int(mask, 16)))
        if target == "SET":
            if options[2] != "src":
                raise self._unknown("value", options[2])
            seconds = int(self._value("--timeout", options)) if "--timeout" in options else 0
            return rule._replace(remember=(self._value("--add-set", options), seconds))
        return rule

    def _value(self, option: str, options: list[str]) -> str:
        if option not in options:
            raise self._unknown("option", options[0] if options else "")
        return options[options.index(option) + 1]

    def _unknown(self, kind: str, name: str) -> UnknownRuleError:
        return UnknownRuleError(f"{kind} {name!r} in {self._text!r}")


def _within(field: Callable[[Flow], bytes]) -> Callable[[str], Match]:
    def make(value: str) -> Match:
        network = ip_network(value, strict=False)
        length = network.max_prefixlen // 8
        shift = network.max_prefixlen - network.prefixlen
        wanted = int(network.network_address) >> shift

        def match(flow: Flow, _facts: Facts) -> bool:
            address = field(flow)
            return len(address) == length and int.from_bytes(address, "big") >> shift == wanted

        return match

    return make


def _protocol(value: str) -> Match:
    return lambda flow, _facts: flow.protocol == value


def _port(value: str) -> Match:
    low, _, high = value.partition(":")
    ports = range(int(low), int(high or low) + 1)
    return lambda flow, _facts: flow.port in ports


def _interface(value: str) -> Match:
    if value.endswith("+"):
        return lambda flow, _facts: flow.interface.startswith(value[:-1])
    return lambda flow, _facts: flow.interface == value


def _mark(value: str) -> Match:
    number, _, mask = value.partition("/")
    wanted, bits = int(number, 16), int(mask or "0xffffffff", 16)
    return lambda flow, _facts: flow.mark & bits == wanted


def _state(value: str) -> Match:
    states = set(value.split(","))
    if not states <= {"NEW", "ESTABLISHED", "RELATED", "INVALID", "DNAT"}:
        raise ValueError(value)
    dnat = "DNAT" in states
    return lambda flow, _facts: flow.state.value in states or (dnat and flow.translated)


def _address_type(field: Callable[[Flow], bytes]) -> Callable[[str], Match]:
    def make(value: str) -> Match:
        if value != "LOCAL":
            raise ValueError(value)
        return lambda flow, facts: facts.is_local(field(flow))

    return make


def _bytecode(value: str) -> Match:
    program = Program.parse(value.strip('"'))
    return lambda flow, _facts: program.matches(flow)


def _in_set(name: str, fields: str) -> Match:
    directions = tuple(fields.split(","))
    return lambda flow, facts: facts.member(name, directions, flow)


def _virtual_protocol(value: str) -> Match:
    return lambda flow, _facts: bool(flow.virtual) and NUMBERS[flow.protocol] == int(value)


def _virtual_address(value: str) -> Match:
    wanted = ip_address(value).packed
    return lambda flow, _facts: flow.virtual is not None and flow.virtual[0] == wanted


def _virtual_port(value: str) -> Match:
    return lambda flow, _facts: flow.virtual is not None and flow.virtual[1] == int(value)


_CONDITIONS: Mapping[str, Callable[[str], Match]] = {
    "-s": _within(lambda flow: flow.source),
    "-d": _within(lambda flow: flow.destination),
    "-p": _protocol,
    "-i": _interface,
    "--dport": _port,
    "--mark": _mark,
    "--ctstate": _state,
    "--ctorigdst": _within(lambda flow: flow.original),
    "--dst-type": _address_type(lambda flow: flow.destination),
    "--src-type": _address_type(lambda flow: flow.source),
    "--bytecode": _bytecode,
    "--vproto": _virtual_protocol,
    "--vaddr": _virtual_address,
    "--vport": _virtual_port,
}
