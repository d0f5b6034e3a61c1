"""Computes how the number of rules that a new connection traverses grows with the Services."""

import json
import random

import msgspec

from benchmarks.figures import count
from benchmarks.population import PORT, Population, Shape, Size
from benchmarks.results import RulesTraversed
from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.explain.core.iptables_rules import IptablesRuleset, parse_tables
from svcproxy.explain.core.packet import Packet
from svcproxy.explain.core.trace import trace
from svcproxy.kube.core.decoding import decode_object
from svcproxy.kube.core.parse import parse_object
from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import EndpointSlice, Service
from svcproxy.state.desired import DesiredState
from testbed.cluster import CLIENT_IPV4, CLUSTER_CIDRS

POD = "10.244.1.200"
PODS = ("10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6")
_SAMPLE = 300


class Growth(msgspec.Struct, frozen=True):
    """The rules traversed at one size; ``linear`` is the mean for kube-proxy's list of Services."""

    size: Size
    traversed: RulesTraversed = msgspec.field(name="passed")
    linear: float = msgspec.field(name="list")


def nat_rules(saved: str) -> IptablesRuleset:
    """Parse the nat table of iptables-save's output, or of a restore input for an empty table."""
    return IptablesRuleset({"nat": parse_tables(saved).get("nat", {})})


def rules_traversed(rules: IptablesRuleset, population: Population) -> RulesTraversed:
    """Return the mean over random Services, for a pod and for a client outside the cluster.

    Raises:
        AssertionError: a connection would not be translated.
        UnknownRuleError: a rule is not understood.
    """
    number = min(_SAMPLE, population.size.services)
    addresses = random.Random(0).sample(population.addresses, number)

    def mean(source: str, interface: str) -> float:
        total = 0.0
        for address in addresses:
            found = trace(Packet(source, address, PORT, interface=interface), rules)
            assert abs(found.translated - 1) < 1e-6, f"{address}: {found}"
            total += found.evaluated["nat PREROUTING"]
        return total / number

    return RulesTraversed(from_pod=mean(POD, "br0"), from_outside=mean(CLIENT_IPV4, "eth0"))


def growth(size: Size, shape: Shape) -> Growth:
    """Compute the growth for one size from the restore input, without a kernel."""
    population = Population(size, PODS, shape)
    traversed = rules_traversed(planned_rules(population), population)
    return Growth(size, traversed, size.services / 2)


def planned_rules(population: Population) -> IptablesRuleset:
    """Return the nat rules that iptables mode writes for a population into an empty table."""
    state = DesiredState(IPFamily.IPV4, "node1")
    for document in population.objects():
        raw = json.dumps(document).encode()
        obj = parse_object(decode_object(Kind(document["kind"]), raw))
        if isinstance(obj, Service):
            state.update_service(obj)
        elif isinstance(obj, EndpointSlice):
            state.update_slice(obj)
    state.checkout()
    settings = Settings(IPFamily.IPV4, local_traffic=LocalTraffic(CLUSTER_CIDRS[0]))
    programs = _Recorder()
    backend = IptablesBackend(programs, settings)
    backend.apply(backend.plan(Desired(state.ports, settings), backend.read()))
    return nat_rules("".join(programs.inputs))


class _Recorder(Iptables):
    """Replaces the iptables programs: the kernel is empty, and restore inputs are recorded."""

    def __init__(self) -> None:
        self.variant = Variant.LEGACY  # loads everything in one input
        self.family = IPFamily.IPV4
        self.inputs: list[str] = []

    def save(self, *_tables: str) -> str:
        """Return the rules of an empty kernel."""
        return ""

    def restore(self, text: str) -> None:
        """Record the input."""
        self.inputs.append(text)


def growth_table(found: list[Growth]) -> list[list[str]]:
    """Return the rows of a table, with a header."""
    head = ["Services", "from a pod", "from outside", "a list, as kube-proxy's (n/2, computed)"]
    return [
        head,
        *(
            [
                count(one.size.services),
                count(one.traversed.from_pod),
                count(one.traversed.from_outside),
                count(one.linear),
            ]
            for one in found
        ),
    ]
