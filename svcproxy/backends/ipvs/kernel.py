"""The parts of the kernel that IPVS mode uses, in this network namespace, as one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import NamedTuple

from svcproxy.backends.ipvs import procfile
from svcproxy.backends.ipvs.connection import Ipvs, listing_pieces, read_listing
from svcproxy.backends.ipvs.ipset import Sets
from svcproxy.backends.ipvs.links import Links
from svcproxy.backends.ipvs.naming import SETS
from svcproxy.backends.ipvs.operations import (
    AddressOperation,
    Failure,
    ServerOperation,
    SetOperation,
)
from svcproxy.backends.ipvs.plan import Observed
from svcproxy.backends.ipvs.values import (
    Addresses,
    Connections,
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServerKey,
)
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.fingerprint import sizes as table_sizes
from svcproxy.backends.xtables.generation import generation
from svcproxy.backends.xtables.ruleset import TABLES
from svcproxy.backends.xtables.savefile import parse


class Fingerprint(NamedTuple):
    """What tells that something has changed: digests of virtual servers and rules, and counts."""

    servers: procfile.ServersFingerprint
    rules: bytes
    set_sizes: tuple[tuple[str, int], ...]
    addresses: tuple[tuple[tuple[int, int], int], ...]

    @property
    def counts(self) -> Counter[str]:
        """How much there is of everything, as the planner counts it."""
        return Counter(
            {
                "virtual_servers": self.servers.virtual,
                "real_servers": self.servers.real,
                "addresses": sum(number for _, number in self.addresses),
                **dict(self.set_sizes),
            }
        )


class IpvsKernel:
    """One family's virtual servers, ipsets, rules, and addresses on ``kube-ipvs0``.

    It belongs to the thread that makes it.

    Raises:
        BackendError: there is no IPVS.
    """

    def __init__(self, programs: Iptables) -> None:
        self._programs = programs
        self._family = programs.family
        self.ipvs = Ipvs(programs.family)
        self.sets = Sets(programs.family)
        self.links = Links(programs.family)
        self._rules: tuple[bytes | None, bytes] = None, b""

    @property
    def sent(self) -> int:
        """How many netlink messages have been sent."""
        return self.ipvs.sent + self.sets.sent + self.links.sent

    def read(self) -> tuple[Observed, Addresses, Fingerprint]:
        """Read everything; the last of the three tells whether it has changed since.

        Raises:
            BackendError: something could not be read.
        """
        addresses = self.links.read()
        known = self._version_of_rules()
        listing, rules = read_listing(), self._programs.save(*TABLES)
        self._rules = known, _digest(rules)
        real = procfile.parse(listing, self._family)
        # The two lists are not of the same moment; what only one has is as good as not there.
        servers = {k: s for k, s in self.ipvs.virtual_servers().items() if k in real}
        sets = self._sets()
        observed = Observed(parse(rules), servers, real, sets, addresses.bound)
        sizes = {name: len(entries) for name, (_, entries) in sets.items()}
        return observed, addresses, self._fingerprint((listing,), sizes)

    def fingerprint(self, *, servers: bool) -> Fingerprint:
        """What changes when anybody changes something, made from less than ``read`` needs.

        Args:
            servers: whether to look at virtual servers, which costs more than all else.

        Raises:
            BackendError: something could not be read.
        """
        headers = self.sets.headers()
        sizes = {name: h.elements for name, h in headers.items() if name in SETS[self._family]}
        version = self._version_of_rules()
        if version is None or version != self._rules[0]:
            # Perhaps only others' rules have changed, or the kernel does not tell.
            self._rules = version, _digest(self._programs.save(*TABLES))
        return self._fingerprint(listing_pieces() if servers else (), sizes)

    def _version_of_rules(self) -> bytes | None:
        """What hardly stays the same when rules change; ``None`` if the kernel does not tell."""
        if self._programs.variant is Variant.LEGACY:
            return table_sizes(self._family)
        number = generation()
        return None if number is None else str(number).encode()

    def _fingerprint(self, listing: Iterable[bytes], sizes: Mapping[str, int]) -> Fingerprint:
        servers = procfile.fingerprint(listing, self._family)
        counts = tuple(sorted(self.links.count().items()))
        return Fingerprint(servers, self._rules[1], tuple(sorted(sizes.items())), counts)

    def _sets(self) -> dict[str, tuple[SetKind, AbstractSet[SetEntry]]]:
        found: dict[str, tuple[SetKind, AbstractSet[SetEntry]]] = {}
        kinds = SETS[self._family].kinds
        for name, header in self.sets.headers().items():
            if name in kinds:
                kind = header.kind or kinds[name]._replace(type="")
                entries = self.sets.entries(name, kind) if header.kind else frozenset[SetEntry]()
                found[name] = kind, entries
        return found

    # --- What ``execute`` asks for --------------------------------------------------------------

    def change_sets(self, operations: Sequence[SetOperation]) -> list[Failure]:
        """Change ipsets."""
        return self.sets.execute(operations)

    def change_servers(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        """Change virtual and real servers."""
        return self.ipvs.execute(operations)

    def change_addresses(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        """Change the addresses of ``kube-ipvs0``."""
        return self.links.execute(operations)

    def restore(self, text: str) -> None:
        """Apply an input of iptables-restore."""
        self._programs.restore(text)

    def connections(self, key: VirtualServerKey) -> Mapping[RealServerKey, Connections]:
        """The connections of each real server of a virtual server."""
        return {real: found for real, (_, found) in self.ipvs.real_servers(key).items()}


def _digest(rules: str) -> bytes:
    """Of all rules, but neither of comments nor of counters of chains."""
    text = "\n".join(line for line in rules.split("\n") if not line.startswith(("#", ":")))
    return blake2b(text.encode(), digest_size=16).digest()
