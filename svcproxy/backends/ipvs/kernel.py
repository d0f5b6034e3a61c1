"""The parts of the kernel that IPVS mode uses, in this network namespace, as one."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.naming import DUMMY_INTERFACE, SETS
from svcproxy.backends.ipvs.plan import Observed
from svcproxy.backends.xtables.change_tracker import GenerationTracker, TableSizeTracker
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.restoretext import ENCODING
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.table_sizes import table_sizes
from svcproxy.netlink.core import ipvs_listing
from svcproxy.netlink.core.kernel_objects import (
    Addresses,
    Connections,
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddressOperation,
    Failure,
    ServerOperation,
    SetOperation,
)
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.generation import generation
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.netlink.ipvs import IpvsSocket, read_listing
from svcproxy.netlink.rtnetlink import RouteSocket

_CLOCK_MONOTONIC_COARSE = 6


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Raise errors of netlink sockets as ``BackendError``."""
    try:
        yield
    except NetlinkError as error:
        raise BackendError(str(error)) from error


class Fingerprint(NamedTuple):
    """What tells that something else than a virtual server has changed."""

    rules: bytes
    set_sizes: tuple[tuple[str, int], ...]
    addresses: int

    @property
    def counts(self) -> Counter[str]:
        """How much there is of what the planner counts."""
        return Counter({"addresses": self.addresses, **dict(self.set_sizes)})


class IpvsKernel:
    """One family's virtual servers, ipsets, rules, and addresses on ``kube-ipvs0``.

    It belongs to the thread that makes it.

    Raises:
        BackendError: there is no IPVS.
    """

    def __init__(self, programs: Iptables) -> None:
        self._programs = programs
        self._family = programs.family
        self.ipvs = IpvsSocket(programs.family)
        self.sets = IpsetSocket(programs.family)
        self.links = RouteSocket(programs.family, DUMMY_INTERFACE)
        self._rules: tuple[bytes | None, bytes] = None, b""
        legacy = programs.variant is Variant.LEGACY
        self._mark = TableSizeTracker(programs.family) if legacy else GenerationTracker()

    @property
    def only_we_changed_rules(self) -> bool:
        """Whether nobody else has changed rules since ``read``, as far as the kernel tells."""
        return self._mark.is_unchanged()

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
        self._mark.before_read()
        known = self._version_of_rules()
        rules = self._programs.save(*TABLES)
        self._rules = known, _digest(rules)
        servers = self.ipvs.virtual_servers()
        # It has both families' servers, and is long: not for a family that has none.
        real = ipvs_listing.parse_listing(read_listing(), self._family) if servers else {}
        # The two lists are not of the same moment; what only one has is as good as not there.
        servers = {key: server for key, server in servers.items() if key in real}
        sets = self._sets()
        observed = Observed(parse(rules), servers, real, sets, addresses.bound)
        sizes = {name: len(entries) for name, (_, entries) in sets.items()}
        return observed, addresses, self._fingerprint(sizes)

    def fingerprint(self) -> Fingerprint:
        """What changes when anybody changes something, made from less than ``read`` needs.

        Raises:
            BackendError: something could not be read.
        """
        headers = self.sets.headers()
        sizes = {name: h.elements for name, h in headers.items() if name in SETS[self._family]}
        version = self._version_of_rules()
        if version is None or version != self._rules[0]:
            # Perhaps only others' rules have changed, or the kernel does not tell.
            self._rules = version, _digest(self._programs.save(*TABLES))
        return self._fingerprint(sizes)

    def _version_of_rules(self) -> bytes | None:
        """What hardly stays the same when rules change; ``None`` if the kernel does not tell."""
        if self._programs.variant is Variant.LEGACY:
            return table_sizes(self._family)
        number = generation()
        return None if number is None else str(number).encode()

    def _fingerprint(self, sizes: Mapping[str, int]) -> Fingerprint:
        return Fingerprint(self._rules[1], tuple(sorted(sizes.items())), self.links.count())

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
        self._mark.before_write()
        self._programs.restore(text)
        self._mark.after_write(text.count("\nCOMMIT"))

    def connections(self, key: VirtualServerKey) -> Mapping[RealServerKey, Connections]:
        """The connections of each real server of a virtual server."""
        return {real: found for real, (_, found) in self.ipvs.real_servers(key).items()}


def ticks_per_second() -> int:
    """The kernel's own ticks (CONFIG_HZ), in which it lists time-outs.

    They are as long as what its coarse clocks count in; no other call tells.
    """
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def _digest(rules: str) -> bytes:
    """Of all rules, but neither of comments nor of counters of chains."""
    text = "\n".join(line for line in rules.split("\n") if not line.startswith(("#", ":")))
    return blake2b(text.encode(*ENCODING), digest_size=16).digest()
