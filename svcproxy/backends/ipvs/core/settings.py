"""Settings of IPVS mode: flags, the node's addresses, and schedulers chosen by annotations."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec
from msgspec import structs

from svcproxy.backends.settings import Settings
from svcproxy.limits import SCHEDULER_FLAGS, SCHEDULER_NAME_CHARACTERS
from svcproxy.model.names import NamespacedName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import ServerFlag

SCHEDULER = "svcproxy.io/ipvs-scheduler"
FLAGS = "svcproxy.io/ipvs-scheduler-flags"
_KUBE_ROUTER = {
    SCHEDULER: "kube-router.io/service.scheduler",
    FLAGS: "kube-router.io/service.schedflags",
}

ANNOTATIONS = frozenset((*_KUBE_ROUTER, *_KUBE_ROUTER.values()))
"""The annotation keys that IPVS mode reads; ``ServicePort.annotations`` must carry them."""

SCHEDULERS = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf")
)
"""The schedulers of ``net/netfilter/ipvs`` in Linux 6.12; each is a module ``ip_vs_<name>``."""

_NUMBERED = {  # kube-router and ipvsadm accept these for every scheduler
    "flag-1": ServerFlag.SCHEDULER_1,
    "flag-2": ServerFlag.SCHEDULER_2,
    "flag-3": ServerFlag.SCHEDULER_3,
}
_FLAGS = {
    name: {
        f"{name}-fallback": ServerFlag.SCHEDULER_1,
        f"{name}-port": ServerFlag.SCHEDULER_2,
        **_NUMBERED,
    }
    for name in ("sh", "mh")
}
_DEFAULT_FLAGS = {
    # With a plain hash, clients of a terminating endpoint get "no destination" until it is removed
    # (kubernetes#138688), and all clients behind one NAT address get the same endpoint.
    "mh": int(ServerFlag.SCHEDULER_1 | ServerFlag.SCHEDULER_2),
}


class Scheduling(msgspec.Struct, frozen=True, gc=False):
    """A scheduler of the kernel (``rr``, ``lc``, …) and its flags (``ServerFlag.SCHEDULER_…``)."""

    name: str = "rr"
    flags: int = 0


class SchedulerChoice(NamedTuple):
    """The scheduler and flags that the annotations name, cut to the length limits.

    Attributes:
        scheduler: the name in lower case; empty if the Service names none.
        flags: the names of the flags; ``None`` if the Service has no annotation for flags.
    """

    scheduler: str = ""
    flags: tuple[str, ...] | None = None


_NO_CHOICE = SchedulerChoice()


def scheduler_choice(annotations: tuple[tuple[str, str], ...]) -> SchedulerChoice:
    """Read the scheduler annotations of a Service port.

    svcproxy's own keys take precedence over kube-router's. A name that is too long is cut, so that
    it fits a log line; the cut name is not a valid scheduler or flag either.
    """
    if not annotations:
        return _NO_CHOICE
    found = dict(annotations)
    flags = _value(found, FLAGS)
    return SchedulerChoice(
        _shortened((_value(found, SCHEDULER) or "").strip().lower()),
        None if flags is None else tuple(_flags(flags)),
    )


def _flags(text: str) -> Iterator[str]:
    # The remainder after the last split is one flag. If it holds several, it is not a valid one.
    parts = (part.strip() for part in text.split(",", SCHEDULER_FLAGS))
    return (_shortened(flag) for flag in parts if flag)


def _shortened(name: str) -> str:
    limit = SCHEDULER_NAME_CHARACTERS
    return name if len(name) <= limit else f"{name[:limit]}..."


def _value(annotations: Mapping[str, str], key: str) -> str | None:
    return annotations.get(key, annotations.get(_KUBE_ROUTER[key]))


def scheduling(name: str, flags: tuple[str, ...] | None = None) -> Scheduling:
    """Return a scheduler with the named flags, or with its default flags if ``flags`` is ``None``.

    Flags that the scheduler does not have are ignored.
    """
    if flags is None:
        return Scheduling(name, _DEFAULT_FLAGS.get(name, 0))
    known = _FLAGS.get(name, {})
    return Scheduling(name, sum({int(known[flag]) for flag in flags if flag in known}))


def unknown_flags(name: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags that a scheduler does not have."""
    return tuple(flag for flag in flags if flag not in _FLAGS.get(name, {}))


def annotation_problems(
    ports: Iterable[ServicePort | None], default: str
) -> dict[NamespacedName, str]:
    """Describe what is wrong with the scheduler annotations of Services.

    Args:
        ports: Service ports.
        default: the scheduler of Services that choose none.

    Returns:
        The problem of each Service that has one.
    """
    return {
        port.name.service: problem
        for port in ports
        if port is not None and port.annotations
        if (problem := _annotation_problem(scheduler_choice(port.annotations), default))
    }


def _annotation_problem(choice: SchedulerChoice, default: str) -> str:
    if choice == _NO_CHOICE:
        return ""
    name = choice.scheduler or default
    if name not in SCHEDULERS:
        known = ", ".join(sorted(SCHEDULERS))
        return f"{SCHEDULER}: {name!r} is no scheduler: choose one of {known}"
    unknown = unknown_flags(name, choice.flags or ())
    if unknown:
        return f"{FLAGS}: {name} has no {', '.join(map(repr, unknown))}"
    return ""


class KernelFacts(msgspec.Struct, frozen=True, gc=False):
    """What ``read`` and ``apply`` found out about this node's kernel.

    Attributes:
        addresses: the node's own addresses on all interfaces but loopback and ``kube-ipvs0``,
            without link-local IPv6 addresses.
        subnets: the directly connected subnets of those interfaces, as CIDRs.
        drop_invalid: drop forwarded packets that conntrack calls INVALID. It is off if conntrack
            accepts TCP packets outside the window.
        missing_schedulers: schedulers whose modules the kernel lacks.
    """

    addresses: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    drop_invalid: bool = True
    missing_schedulers: frozenset[str] = frozenset()


class IpvsSettings(Settings, frozen=True, gc=False):
    """Settings with the flags of IPVS mode and the facts about the kernel.

    Attributes:
        scheduling: the scheduler of Services that choose none. It also replaces schedulers that
            the kernel lacks.
        excluded: CIDRs whose virtual servers and addresses are never removed, unless they belong
            to a Service (``--ipvs-exclude-cidrs``).
        facts: what is known about the kernel.
    """

    scheduling: Scheduling = Scheduling()
    excluded: tuple[str, ...] = ()
    facts: KernelFacts = KernelFacts()

    @classmethod
    def of(
        cls,
        settings: Settings,
        facts: KernelFacts,
        scheduling: Scheduling,
        excluded: tuple[str, ...],
    ) -> "IpvsSettings":
        """Combine settings of all modes with those of IPVS mode."""
        return cls(
            **structs.asdict(settings), scheduling=scheduling, excluded=excluded, facts=facts
        )

    @property
    def drop_invalid(self) -> bool:
        """See ``KernelFacts.drop_invalid``."""
        return self.facts.drop_invalid

    def node_port_addresses(self) -> tuple[str, ...]:
        """Return the node's addresses that serve node ports."""
        ranges = [ip_network(cidr) for cidr in self.node_port_ranges]
        addresses = self.facts.addresses
        if not ranges:
            return addresses
        return tuple(a for a in addresses if any(ip_address(a) in r for r in ranges))

    def is_on_link(self, address: str) -> bool:
        """Whether an address is the node's own or in a directly connected subnet.

        On ``kube-ipvs0``, such an address would cut the node off from the machine that has it.
        """
        number = ip_address(address)
        return any(number in ip_network(cidr) for cidr in self.facts.subnets)

    def is_excluded(self, address: str) -> bool:
        """Whether an address is in a range of ``--ipvs-exclude-cidrs``."""
        return bool(self.excluded) and any(
            ip_address(address) in ip_network(cidr) for cidr in self.excluded
        )
