"""How many rules a new connection passes, found by following it through saved rules.

Where a rule is taken at random (``-m statistic``) both ways are followed, each with its weight,
so the result is the expected number.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

Chains = Mapping[str, Sequence[str]]

_TOKEN = re.compile(r'"[^"]*"|\S+')
_MODULES = {"comment", "tcp", "udp", "sctp", "mark", "addrtype", "statistic", "conntrack"}
_NEGLIGIBLE = 1e-9


class UnknownRuleError(Exception):
    """A rule that the walker does not understand; the message quotes it."""


class Packet(NamedTuple):
    """The first packet of a connection from elsewhere to a Service's address."""

    source: int
    destination: int
    port: int
    interface: str
    protocol: str = "tcp"

    @classmethod
    def make(cls, source: str, destination: str, port: int, interface: str = "br0") -> "Packet":
        """A packet with addresses as text."""
        return cls(int(IPv4Address(source)), int(IPv4Address(destination)), port, interface)


class Passed(NamedTuple):
    """The expected number of rules passed, and the probability of being translated."""

    rules: float
    translated: float


_Match = Callable[[Packet, int], bool]


class _Rule(NamedTuple):
    matches: tuple[_Match, ...]
    probability: float
    target: str
    mark: tuple[int, int]

    def chance(self, packet: Packet, mark: int) -> float:
        for match in self.matches:
            if not match(packet, mark):
                return 0.0
        return self.probability


class Walker:
    """Follows connections through the chains of a nat table."""

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._parsed: dict[str, tuple[_Rule, ...]] = {}

    def passed(self, packet: Packet, start: str = "PREROUTING") -> Passed:
        """Follow a packet from a built-in chain.

        Raises:
            UnknownRuleError: it met a rule that is not understood.
        """
        walk = _Walk(self, packet)
        walk.follow(start, 1.0)
        return Passed(walk.rules, walk.ends["DNAT"])

    def rules(self, chain: str) -> tuple[_Rule, ...]:
        """The parsed rules of a chain."""
        if chain not in self._parsed:
            self._parsed[chain] = tuple(_parse(text) for text in self._chains[chain])
        return self._parsed[chain]

    def has(self, chain: str) -> bool:
        """Whether a target is a chain; all others end the walk or go on with it."""
        return chain in self._chains


class _Walk:
    """One packet under way; ``mark`` is what it carries."""

    def __init__(self, walker: Walker, packet: Packet) -> None:
        self._walker = walker
        self._packet = packet
        self._mark = 0
        self.rules = 0.0
        self.ends: dict[str, float] = defaultdict(float)

    def follow(self, chain: str, weight: float) -> float:
        """Pass a chain and give the weight that comes back out of it."""
        returned = 0.0
        for rule in self._walker.rules(chain):
            if weight < _NEGLIGIBLE:
                break
            self.rules += weight
            chance = rule.chance(self._packet, self._mark)
            if not chance:
                continue
            taken = weight * chance
            if rule.target == "MARK":
                value, mask = rule.mark
                self._mark = (self._mark & ~mask) ^ value
            elif rule.target == "RETURN":
                returned += taken
                weight -= taken
            elif self._walker.has(rule.target):
                weight += self.follow(rule.target, taken) - taken
            elif rule.target:
                self.ends[rule.target] += taken
                weight -= taken
        return weight + returned


def _parse(text: str) -> _Rule:
    """Read one rule without its ``-A CHAIN``."""
    matches: list[_Match] = []
    probability, target, mark = 1.0, "", (0, 0)
    tokens = iter(_TOKEN.findall(text))
    negated = False
    for token in tokens:
        if token == "!":
            negated = True
            continue
        if token == "-m":
            _module(next(tokens), text)
        elif token == "-j":
            target = next(tokens)
            mark = _set_mark(list(tokens), text) if target == "MARK" else mark
            break  # what follows are the target's own options
        elif token == "--probability":
            probability = float(next(tokens))
        elif token not in {"--comment", "--mode"}:
            matches.append(_condition(token, next(tokens), text, negated=negated))
        else:
            next(tokens)
        negated = False
    return _Rule(tuple(matches), probability, target, mark)


def _module(name: str, text: str) -> None:
    if name not in _MODULES:
        raise UnknownRuleError(f"match {name!r} in {text!r}")


def _condition(option: str, value: str, text: str, *, negated: bool) -> _Match:
    make = _CONDITIONS.get(option)
    if make is None:
        raise UnknownRuleError(f"option {option!r} in {text!r}")
    match = make(value)
    return (lambda packet, mark: not match(packet, mark)) if negated else match


def _set_mark(options: list[str], text: str) -> tuple[int, int]:
    """The bits to flip, and those to clear before; saved rules know no other form."""
    if options[0] != "--set-xmark":
        raise UnknownRuleError(f"option {options[0]!r} in {text!r}")
    value, mask = options[1].split("/")
    return int(value, 16), int(mask, 16)


def _source(value: str) -> _Match:
    network = IPv4Network(value)
    base, mask = int(network.network_address), int(network.netmask)
    return lambda packet, _mark: packet.source & mask == base


def _destination(value: str) -> _Match:
    network = IPv4Network(value)
    base, mask = int(network.network_address), int(network.netmask)
    return lambda packet, _mark: packet.destination & mask == base


def _protocol(value: str) -> _Match:
    return lambda packet, _mark: packet.protocol == value


def _port(value: str) -> _Match:
    low, _, high = value.partition(":")
    ports = range(int(low), int(high or low) + 1)
    return lambda packet, _mark: packet.port in ports


def _interface(value: str) -> _Match:
    if value.endswith("+"):
        return lambda packet, _mark: packet.interface.startswith(value[:-1])
    return lambda packet, _mark: packet.interface == value


def _mark_is(value: str) -> _Match:
    number, _, mask = value.partition("/")
    wanted, bits = int(number, 16), int(mask or "0xffffffff", 16)
    return lambda _packet, mark: mark & bits == wanted


def _is_new(value: str) -> _Match:
    new = "NEW" in value.split(",")
    return lambda _packet, _mark: new


def _is_local(value: str) -> _Match:
    # Service addresses are no addresses of the node, and the client is another machine.
    local = value == "LOCAL"
    return lambda _packet, _mark: not local


_CONDITIONS: dict[str, Callable[[str], _Match]] = {
    "-s": _source,
    "-d": _destination,
    "-p": _protocol,
    "-i": _interface,
    "--dport": _port,
    "--mark": _mark_is,
    "--ctstate": _is_new,
    "--dst-type": _is_local,
    "--src-type": _is_local,
}


def saved_chains(text: str, table: str = "nat") -> dict[str, list[str]]:
    """The chains of one table in the output of iptables-save, or in a first restore input."""
    chains: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line[1:].strip() == table
        elif inside and line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif inside and line.startswith("-"):
            action, chain, rule = line.split(" ", 2)
            rules = chains.setdefault(chain, [])
            rules.insert(0 if action == "-I" else len(rules), rule)
    return chains
