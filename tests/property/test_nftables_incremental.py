"""For any sequence of events: incremental equals from scratch, and a second sync is empty.

A strict fake kernel takes the same bytes as a netlink socket would, and random packets are passed
through its rules.
"""

from collections import Counter
from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_sets import parse_tier
from svcproxy.backends.settings import LocalTraffic
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import EndpointSlice, Service, SliceEndpoint, SlicePort
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.nf_tables.ruleset import element_data
from svcproxy.netlink.core.nf_tables.transaction import Plan
from tests.examples import examples
from tests.property.machines import Machine
from tests.property.strategies import NODE, SYNC, events, services
from tests.unit.nftables.fake_kernel import FakeKernel, FakeSet
from tests.unit.nftables.packets import Node as PacketNode
from tests.unit.nftables.packets import Packet

Contents = dict[str, Any]

OWN = {
    IPFamily.IPV4: ("192.168.50.1", "203.0.113.2"),
    IPFamily.IPV6: ("fd00:192:168:50::1", "fd00:203::2"),
}


class Table(Machine):
    """A machine with a fake nf_tables."""

    def __init__(self, options: NftablesSettings) -> None:
        super().__init__(options, Planner(options), FakeKernel(options.family))

    @property
    def here(self) -> set[str]:
        """The addresses of endpoints that are on this node, or may be."""
        lists = (
            e for p in self.state.ports.values() for e in (*p.local_endpoints, *p.cluster_endpoints)
        )
        return {e.address for e in lists if e.is_local or e.node_unknown}

    def applied(self, plan: Plan) -> None:
        table = self.kernel.table
        assert plan.sizes == {
            "elements": sum(len(held.elements) for held in table.sets.values()),
            "rules": sum(map(len, table.rules.values())),
            "chains": len(table.chains),
        }

    def contents(self) -> Contents:
        return canonical(self.kernel)


def run(options: NftablesSettings, sequence: list[Any]) -> Table:
    return Table(options).take_all([*sequence, SYNC])


def canonical(kernel: FakeKernel) -> Contents:
    """Return everything in the table; the order of the endpoints in a list does not count."""
    table = kernel.table
    elements: Contents = {}
    for name, held in table.sets.items():
        if parse_tier(name) is None:
            elements[name] = held.elements
            continue
        lists: dict[bytes, dict[int, bytes]] = {}
        for key, tail in held.elements.items():
            lists.setdefault(key[:-4], {})[int.from_bytes(key[-4:], "little")] = tail
        for numbered in lists.values():
            assert sorted(numbered) == list(range(len(numbered)))
        elements[name] = {key: Counter(numbered.values()) for key, numbered in lists.items()}
    # Without the IDs of sets, which only have a meaning within a transaction.
    sets = {name: held.body[:-8] for name, held in table.sets.items()}
    parts = {"sets": sets, "chains": table.chains, "rules": table.rules, "elements": elements}
    return deepcopy(parts)


@st.composite
def slices_of(draw: st.DrawFn, service: Service) -> EndpointSlice:
    """Draw an EndpointSlice of a Service, in one of its families; most endpoints are ready."""
    six = ":" in draw(st.sampled_from(service.cluster_ips))
    prefix = "fd00:10:244::" if six else "10.244.0."
    mostly = st.sampled_from([True, True, True, False])
    endpoint = st.builds(
        SliceEndpoint,
        address=st.integers(1, 12).map(lambda i: f"{prefix}{i}"),
        ready=mostly,
        serving=mostly,
        terminating=st.booleans(),
        node_name=st.sampled_from([NODE, NODE, "node2", ""]),
    )
    return EndpointSlice(
        name=NamespacedName("ns", f"slice-{service.name.name}-{six}"),
        service=service.name,
        family=IPFamily.IPV6 if six else IPFamily.IPV4,
        ports=tuple(
            SlicePort(p.name, p.protocol, draw(st.sampled_from([8080, 8080, 8081])))
            for p in service.ports
        ),
        endpoints=tuple(draw(st.lists(endpoint, max_size=6))),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """Draw events of Services with endpoints, sometimes followed by arbitrary events."""
    found: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        made = draw(st.lists(services(), min_size=1, max_size=4))
        found += [*made, *(draw(slices_of(s)) for s in made for _ in range(2)), SYNC]
    return [*found, *draw(events)] if draw(st.integers(0, 3)) == 0 else found


settings_values = st.builds(
    NftablesSettings,
    family=st.sampled_from(list(IPFamily)),
    masquerade_all=st.booleans(),
    local_traffic=st.sampled_from(
        [
            LocalTraffic(),
            LocalTraffic(source="10.244.0.0/16"),
            LocalTraffic(source="0.0.0.0/0"),
            LocalTraffic(interface="cni+"),
        ]
    ),
    node_address=st.sampled_from(["", "192.168.50.1"]),
).map(
    lambda s: (
        s
        if s.family is IPFamily.IPV4
        else NftablesSettings(
            family=s.family,
            masquerade_all=s.masquerade_all,
            local_traffic=LocalTraffic(
                {"10.244.0.0/16": "fd00:10:244::/56", "0.0.0.0/0": "::/0"}.get(
                    s.local_traffic.source, ""
                ),
                s.local_traffic.interface,
            ),
            node_address="fd00:192:168:50::1" if s.node_address else "",
        )
    )
)
slow = [HealthCheck.too_slow]


@settings(max_examples=examples(150), deadline=None, suppress_health_check=slow)
@given(settings_values, histories())
def test_incremental_equals_from_scratch(options: NftablesSettings, sequence: list[Any]) -> None:
    machine = run(options, sequence)
    fresh = Table(options).take_over(machine)
    assert machine.state.ports == fresh.state.ports
    assert machine.contents() == fresh.contents()


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, histories())
def test_applying_twice_changes_nothing(options: NftablesSettings, sequence: list[Any]) -> None:
    machine = run(options, sequence)
    again = machine.compare(Planner(options))
    assert not again
    assert not again.operations
    assert not machine.planner.plan_changes({})


@settings(max_examples=examples(80), deadline=None, suppress_health_check=slow)
@given(settings_values, histories(), st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(
    options: NftablesSettings, sequence: list[Any], random: Any
) -> None:
    machine = run(options, [event for event in sequence if event != SYNC])
    other = Table(options).take_shuffled(machine, random)
    assert other.contents() == machine.contents()


@settings(max_examples=examples(80), deadline=None, suppress_health_check=slow)
@given(settings_values, histories(), st.randoms(use_true_random=False))
def test_any_damage_is_repaired_by_a_comparison(
    options: NftablesSettings, sequence: list[Any], random: Any
) -> None:
    """A full comparison restores everything that other programs deleted, added or changed."""
    machine = run(options, sequence)
    whole = machine.contents()
    damage(machine.kernel, random)
    machine.apply(machine.compare())
    assert machine.contents() == whole
    assert not machine.compare()


def damage(kernel: FakeKernel, random: Any) -> None:
    table = kernel.table
    for name, held in table.sets.items():
        if name != "affinity":
            damage_elements(held, random)
    for chain, rules in table.rules.items():
        if random.random() < 0.1:
            table.rules[chain] = rules[: random.randrange(len(rules) + 1)]
        elif rules and random.random() < 0.05:
            rules.append(random.choice(rules))
    if random.random() < 0.1:
        table.chains["foreign"] = table.chains["services"].replace(b"services", b"servicex")
        table.rules["foreign"] = []


def damage_elements(held: FakeSet, random: Any) -> None:
    for key in list(held.elements):
        tail = held.elements[key]
        if random.random() < 0.1:
            del held.elements[key]
        elif random.random() < 0.1 and len(tail) > 20:
            held.elements[key] = tail[:9] + bytes([tail[9] ^ 1]) + tail[10:]
    if random.random() < 0.1:
        value = element_data(bytes(held.data_length)) if held.data_length else b""
        held.elements[bytes(held.key_length)] = value


# --- Packets ---------------------------------------------------------------------------------


SOURCES = {
    IPFamily.IPV4: ("10.244.0.1", "10.244.0.9", "198.51.100.1", "192.168.50.100"),
    IPFamily.IPV6: ("fd00:10:244::1", "fd00:10:244::9", "fd00:198::1", "fd00:192::100"),
}


def draw_packet(draw: Any, machine: Table) -> Packet:
    """Draw a packet, mostly to a frontend of a Service."""
    family = machine.options.family
    ports = sorted(machine.state.ports.values(), key=lambda port: port.name)
    ends = [(f.address, f.port, p.name.protocol.keyword) for p in ports for f in p.frontends]
    some = st.sampled_from(ends) if ends else st.nothing()
    address, port, protocol = draw(some | st.just(("", 80, "tcp")))
    if draw(st.integers(0, 9)) == 0:
        protocol = draw(st.sampled_from(["tcp", "udp", "sctp"]))
    hosts = [*SOURCES[family], *OWN[family]]
    for service_port in ports:
        lists = (*service_port.local_endpoints, *service_port.cluster_endpoints)
        hosts += [endpoint.address for endpoint in lists[:2]]
    source = draw(st.sampled_from(hosts))
    pod = source.startswith(("10.244.", "fd00:10:244:"))
    destination = address or draw(st.sampled_from(OWN[family]))
    return Packet(source, destination, port, protocol, interface="cni0" if pod else "eth0")


class Expected:
    """The verdict and endpoints of a packet by kube-proxy's semantics, without the rules."""

    def __init__(self, machine: Table, packet: Packet) -> None:
        self.packet = packet
        self.options = machine.options
        self.own = OWN[machine.options.family]
        self.verdict = "accept"
        self.endpoints: tuple[Endpoint, ...] = ()
        self.masquerade = False
        self.ports = list(machine.state.ports.values())
        found = self._find(packet.destination) or (
            self._find("") if packet.destination in self.own else None
        )
        if found is not None:
            self._frontend(*found)
        elif packet.destination not in self.own and self._is_cluster_ip():
            self.verdict = "reject"

    def _is_cluster_ip(self) -> bool:
        return any(
            f.kind is FrontendKind.CLUSTER_IP and f.address == self.packet.destination
            for port in self.ports
            for f in port.frontends
        )

    def _find(self, address: str) -> tuple[ServicePort, Frontend] | None:
        for port in self.ports:
            for frontend in port.frontends:
                same = (frontend.address, frontend.port) == (address, self.packet.port)
                if same and port.name.protocol.keyword == self.packet.protocol:
                    return port, frontend
        return None

    @property
    def _from_pod(self) -> bool:
        local = self.options.local_traffic
        if local.source:
            return ip_address(self.packet.source) in ip_network(local.source)
        interface = "" if self.packet.source in self.own else self.packet.interface
        return bool(local.interface) and interface.startswith("cni")

    def _frontend(self, port: ServicePort, frontend: Frontend) -> None:
        if frontend.is_load_balancer and not self._admitted(port):
            self.verdict = "drop"
            return
        if frontend.kind is FrontendKind.CLUSTER_IP:
            self._refuse(frontend)
            if frontend.verdict is Verdict.FORWARD:
                lists = port.local_endpoints, port.cluster_endpoints
                outside = bool(self.options.local_traffic) and not self._from_pod
                self._serve(lists[not frontend.local], self.options.masquerade_all or outside)
            return
        if frontend.verdict is Verdict.REJECT:
            self.verdict = "reject"
        elif not frontend.local:
            self._serve(port.cluster_endpoints, masquerade=True)
        elif self._from_pod:
            self._serve(port.cluster_endpoints, masquerade=False)
        elif self.packet.source in self.own:
            self._serve(port.cluster_endpoints, masquerade=True)
        else:
            self._refuse(frontend)
            if frontend.verdict is Verdict.FORWARD:
                self._serve(port.local_endpoints, masquerade=False)

    def _admitted(self, port: ServicePort) -> bool:
        ranges = list(port.source_ranges)
        node = self.options.node_address
        if node and any(ip_address(node) in ip_network(r) for r in ranges):
            ranges += [f.address for f in port.frontends if f.is_load_balancer]
        source = ip_address(self.packet.source)
        return not port.source_ranges or any(source in ip_network(r) for r in ranges)

    def _refuse(self, frontend: Frontend) -> None:
        refusals = {Verdict.REJECT: "reject", Verdict.DROP: "drop"}
        self.verdict = refusals.get(frontend.verdict, "accept")

    def _serve(self, endpoints: tuple[Endpoint, ...], masquerade: bool) -> None:  # noqa: FBT001
        assert endpoints
        self.endpoints, self.masquerade = endpoints, masquerade


@pytest.mark.timeout(400)
@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, histories(), st.data())
def test_packets_reach_the_expected_endpoints(
    options: NftablesSettings, sequence: list[Any], data: st.DataObject
) -> None:
    machine = run(options, sequence)
    for _ in range(8):
        packet = draw_packet(data.draw, machine)
        expected = Expected(machine, packet)
        seen: Counter[tuple[str, int] | None] = Counter()
        count = max(1, len(expected.endpoints))
        for number in range(count):
            node = PacketNode(machine.kernel, OWN[options.family])
            passing = Packet(
                packet.source,
                packet.destination,
                packet.port,
                packet.protocol,
                interface="" if packet.source in node.own else packet.interface,
                chosen=(number + 0.5) / count,
            )
            assert node.send(passing) == expected.verdict, packet
            assert not passing.mark or not passing.translated
            seen[passing.translated] += 1
            if passing.translated:
                chosen = next(
                    e for e in expected.endpoints if (e.address, e.port) == passing.translated
                )
                # An address is here if any slice says so, even if another says otherwise.
                hairpin = chosen.address == packet.source and chosen.address in machine.here
                assert passing.masqueraded is (expected.masquerade or hairpin), packet
        wanted: Counter[tuple[str, int] | None] = Counter(
            (e.address, e.port) for e in expected.endpoints
        )
        assert seen == (wanted or Counter((None,)))
