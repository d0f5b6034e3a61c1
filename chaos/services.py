"""The Services of the soak: their objects, their changes, and the expected servers.

Every Service is a **slot** of a fixed flavour. A slot's endpoints, settings and existence change
at random, within bounds: the size of the whole cluster stays the same, so that growth of the
daemon's memory means a leak. Which servers must answer at a slot's addresses follows from its state
by kube-proxy's rules, implemented here independently of the daemon.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from testbed import manifests as m
from testbed.cluster import Cluster, Pod
from testbed.manifests import Object

TARGETS = (8080, 8081)
UDP_TARGET = 5353
NAMESPACE = "soak"
_OLD, _YOUNG = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
_OUTSIDE_ALLOWED, _OUTSIDE_BARRED = "192.168.50.0/24", "172.31.0.0/16"
_ZONES = ("a", "b")
_GHOSTS = 200
STABLE_OUTSIDE, STABLE_NODE_PORT = "203.0.113.1", 30001


class Flavour(StrEnum):
    """The kind of a Service: which features it uses."""

    PLAIN = "plain"
    NODE_PORT = "node-port"
    AFFINITY = "affinity"
    RANGES = "ranges"
    LOCAL = "local"
    INTERNAL = "internal-local"
    UDP = "udp"
    DUAL = "dual"
    HINTS = "hints"
    EXTERNAL = "external-ip"
    CONFLICT = "conflict"
    LARGE = "large"


_WEIGHTS = {
    Flavour.PLAIN: 40,
    Flavour.NODE_PORT: 12,
    Flavour.AFFINITY: 8,
    Flavour.RANGES: 6,
    Flavour.LOCAL: 4,
    Flavour.INTERNAL: 6,
    Flavour.UDP: 8,
    Flavour.DUAL: 6,
    Flavour.HINTS: 6,
    Flavour.EXTERNAL: 4,
    Flavour.CONFLICT: 3,
    Flavour.LARGE: 1,
}
_LIMITED = {Flavour.RANGES, Flavour.LOCAL, Flavour.EXTERNAL}
"""Flavours that need a load balancer address, of which there are 254."""


@dataclass(frozen=True)
class Dial:
    """A frontend and the servers that must answer there; if empty, no server may answer."""

    source: str
    proto: str
    address: str
    port: int
    servers: frozenset[str]
    sticky: bool = False

    def __str__(self) -> str:
        return f"{self.source} to {self.address} {self.port}/{self.proto}"


@dataclass(frozen=True)
class Member:
    """An endpoint: a pod that is ready, or else terminating but still serving."""

    pod: Pod
    ready: bool = True


@dataclass(frozen=True)
class Update:
    """Objects to create or replace in the API server, and objects to delete."""

    put: tuple[Object, ...] = ()
    delete: tuple[Object, ...] = ()


@dataclass
class Slot:
    """A Service that changes; its addresses and ports derive from ``number``."""

    number: int
    flavour: Flavour
    pods: list[Pod]
    outside: str = ""
    members: list[Member] = field(default_factory=list)
    present: bool = True
    special: bool = True
    target: int = TARGETS[0]
    note: int = 0
    ghosts: int = 0

    @property
    def families(self) -> tuple[int, ...]:
        """The IP families that it serves."""
        if self.flavour is Flavour.DUAL:
            return (4, 6)
        if self.flavour in {Flavour.PLAIN, Flavour.AFFINITY, Flavour.UDP}:
            return (6,) if self.number % 4 == 0 else (4,)
        return (4,)

    def vip(self, family: int) -> str:
        """Its cluster IP."""
        if family == 6:
            return f"fd00:10:96::{0x1000 + self.number:x}"
        return f"10.96.{1 + self.number // 250}.{1 + self.number % 250}"

    @property
    def node_port(self) -> int:
        """Its node port, 0 if its flavour has none."""
        return 30100 + self.number

    @property
    def udp(self) -> bool:
        """Whether its port is UDP."""
        return self.flavour is Flavour.UDP

    # --- Objects -----------------------------------------------------------------------------

    def service(self) -> Object:
        """The Service."""
        made = m.service(
            f"s{self.number}",
            [self.vip(family) for family in self.families],
            [self._port()],
            namespace=NAMESPACE,
            **self._spec(),
        )
        made["metadata"]["creationTimestamp"] = _YOUNG
        if self.note:
            made["metadata"]["annotations"] = {"example.com/revision": str(self.note)}
        return made

    def _port(self) -> Object:
        outer = self.flavour in {Flavour.NODE_PORT, Flavour.RANGES, Flavour.LOCAL}
        number = self.node_port if outer else None
        if self.flavour is Flavour.CONFLICT and self.special:
            number = STABLE_NODE_PORT
        if self.udp:
            return m.port(53, name="dns", target=UDP_TARGET, protocol="UDP", node_port=number)
        return m.port(80, name="http", target=self.target, node_port=number)

    def _spec(self) -> Object:
        special = self.special
        outside: Object = {"type": "LoadBalancer", "load_balancer_ips": [self.outside]}
        made: Object = {}
        if self.flavour is Flavour.NODE_PORT:
            made = {"type": "NodePort"}
        elif self.flavour is Flavour.RANGES:
            ranges = [_OUTSIDE_ALLOWED if special else _OUTSIDE_BARRED]
            made = {**outside, "loadBalancerSourceRanges": ranges}
        elif self.flavour is Flavour.LOCAL:
            made = {**outside, "externalTrafficPolicy": "Local" if special else "Cluster"}
            if special:
                made["healthCheckNodePort"] = 31000 + self.number
        elif special:
            made = _SPECIAL.get(self.flavour, {})
        if self.flavour is Flavour.EXTERNAL and special:
            made = {"externalIPs": [self.outside]}
        return made

    def slices(self) -> list[Object]:
        """Its EndpointSlices, one per family."""
        return [self._slice(family) for family in self.families]

    def _slice(self, family: int) -> Object:
        made = m.endpoint_slice(self.service(), self._endpoints(family))
        # The helper derives the family from the endpoints, and an empty slice has none.
        made["addressType"] = f"IPv{family}"
        made["metadata"]["name"] = f"s{self.number}-ipv{family}"
        return made

    def _endpoints(self, family: int) -> list[Object]:
        if self.flavour is Flavour.LARGE:
            numbers = range(self.ghosts, self.ghosts + _GHOSTS)
            return [m.endpoint(f"10.245.{n // 250 % 250}.{n % 250 + 1}") for n in numbers]
        return [
            m.endpoint(
                member.pod.ip(family),
                node=member.pod.node,
                hints={"forZones": [_ZONES[index % 2]]} if self.flavour is Flavour.HINTS else None,
                ready=member.ready,
                serving=True,
                terminating=not member.ready,
            )
            for index, member in enumerate(self.members)
        ]

    def objects(self) -> list[Object]:
        """All its objects; empty while the Service does not exist."""
        return [self.service(), *self.slices()] if self.present else []

    # --- Changes -----------------------------------------------------------------------------

    def change(self, chance: random.Random) -> Update:
        """Make a random change."""
        kind = chance.random()
        # A health-check node port is a socket of the daemon, whose number must stay constant.
        if (kind < 0.10 and self.flavour is not Flavour.LOCAL) or not self.present:
            self.present = not self.present
            everything = (self.service(), *self.slices())
            return Update(put=everything) if self.present else Update(delete=everything)
        if kind < 0.20 and self.flavour is not Flavour.LOCAL:
            self.special = not self.special
            return Update(put=(self.service(),))
        if kind < 0.25 and not self.udp:
            self.target = chance.choice(TARGETS)
            return Update(put=(self.service(), *self.slices()))
        if kind < 0.30:
            self.note += 1
            return Update(put=(self.service(),))
        self.choose_members(chance)
        return Update(put=tuple(self.slices()))

    def choose_members(self, chance: random.Random) -> None:
        """Choose new endpoints: none to three."""
        self.ghosts = chance.randrange(50_000)
        chosen = chance.sample(self.pods, chance.choice((0, 1, 1, 2, 2, 2, 3, 3)))
        # Whether kube-proxy uses terminating endpoints also depends on policies and hints.
        plain = self.flavour not in {Flavour.LOCAL, Flavour.INTERNAL, Flavour.HINTS}
        self.members = [Member(pod, not plain or chance.random() < 0.85) for pod in chosen]

    # --- What has to be answered -------------------------------------------------------------

    def dials(self, zone: str) -> Iterator[Dial]:
        """Yield all frontends with the servers that must answer, if the node is in ``zone``."""
        if not self.present or self.flavour is Flavour.LARGE:
            return
        proto, port = ("udp", 53) if self.udp else ("tcp", 80)
        all_pods = self._usable(zone)
        here = frozenset(name for name in all_pods if name.startswith("pod1"))
        sticky = self.flavour is Flavour.AFFINITY and self.special
        inside = here if self.flavour is Flavour.INTERNAL and self.special else all_pods
        for family in self.families:
            yield Dial("pod1a", proto, self.vip(family), port, inside, sticky)
        outer = here if self.flavour is Flavour.LOCAL and self.special else all_pods
        if self.flavour in {Flavour.NODE_PORT, Flavour.LOCAL, Flavour.RANGES}:
            yield Dial("client", proto, "192.168.50.1", self.node_port, outer)
        if self.flavour is Flavour.RANGES:
            outer = outer if self.special else frozenset()
        if self.flavour in {Flavour.LOCAL, Flavour.RANGES} or (
            self.flavour is Flavour.EXTERNAL and self.special
        ):
            yield Dial("client", proto, self.outside, port, outer)

    def _usable(self, zone: str) -> frozenset[str]:
        members = self.members
        if self.flavour is Flavour.HINTS:
            hinted = [each for n, each in enumerate(members) if _ZONES[n % 2] == zone]
            members = hinted or members
        ready = [member for member in members if member.ready] or members
        return frozenset(member.pod.name for member in ready)


_SPECIAL: dict[Flavour, Object] = {
    Flavour.AFFINITY: {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
    },
    Flavour.INTERNAL: {"internalTrafficPolicy": "Local"},
    Flavour.CONFLICT: {"type": "NodePort", "externalIPs": [STABLE_OUTSIDE]},
}


@dataclass(frozen=True)
class Stable:
    """A Service that never changes and has continuous traffic."""

    name: str
    objects: tuple[Object, ...]
    dial: Dial


def stable(cluster: Cluster) -> list[Stable]:
    """Return the Services that never change."""
    here = [pod for pod in cluster.pods if pod.node == "node1"]

    def made(
        number: int, pods: Iterable[Pod], source: str, address: str, port: int = 80, **spec: object
    ) -> Stable:
        family = 6 if ":" in address else 4
        vip = f"10.96.0.{number}" if family == 4 else f"fd00:10:96::{number}"
        node_port = {"NodePort": STABLE_NODE_PORT, "LoadBalancer": 30000 + number}.get(
            str(spec.get("type"))
        )
        entry = m.port(80, name="http", target=8080, node_port=node_port)
        service = m.service(f"stable{number}", [vip], [entry], namespace="stable", **spec)  # type: ignore[arg-type]
        service["metadata"]["creationTimestamp"] = _OLD
        slices = m.endpoint_slice(service, [m.endpoint(p.ip(family), node=p.node) for p in pods])
        names = frozenset(pod.name for pod in pods)
        sticky = "sessionAffinity" in spec
        dial = Dial(source, "tcp", address, port, names, sticky)
        return Stable(str(service["metadata"]["name"]), (service, slices), dial)

    all_pods, local = cluster.pods, "203.0.113.2"
    return [
        made(21, all_pods, "pod1a", "10.96.0.21"),
        made(22, all_pods, "pod1b", "fd00:10:96::22"),
        made(23, all_pods, "client", "192.168.50.1", STABLE_NODE_PORT, type="NodePort"),
        made(
            24,
            all_pods,
            "client",
            STABLE_OUTSIDE,
            type="LoadBalancer",
            load_balancer_ips=[STABLE_OUTSIDE],
            loadBalancerSourceRanges=[_OUTSIDE_ALLOWED],
        ),
        made(
            25,
            here,
            "client",
            local,
            type="LoadBalancer",
            load_balancer_ips=[local],
            externalTrafficPolicy="Local",
            healthCheckNodePort=31999,
        ),
        made(26, all_pods, "pod1b", "10.96.0.26", sessionAffinity="ClientIP"),
    ]


class Population:
    """All slots, and the zone of the Node.

    Args:
        pods: the pods that serve as endpoints.
        services: the number of Services.
        chance: the source of random choices.
    """

    def __init__(self, pods: list[Pod], services: int, chance: random.Random) -> None:
        self.zone = _ZONES[0]
        self.slots: list[Slot] = []
        free_addresses = (f"203.0.113.{number}" for number in range(10, 250))
        for number in range(services):
            (flavour,) = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
            outside = next(free_addresses, "") if flavour in _LIMITED else ""
            if flavour in _LIMITED and not outside:
                flavour = Flavour.PLAIN
            slot = Slot(number, flavour, pods, outside)
            slot.choose_members(chance)
            self.slots.append(slot)

    def change(self, chance: random.Random) -> Update:
        """Change one random slot."""
        return chance.choice(self.slots).change(chance)

    def move_node(self, chance: random.Random) -> None:
        """Choose a random zone for the node, perhaps the same one."""
        self.zone = chance.choice(_ZONES)

    def dials(self) -> list[Dial]:
        """Return all frontends of all slots."""
        return [dial for slot in self.slots for dial in slot.dials(self.zone)]
