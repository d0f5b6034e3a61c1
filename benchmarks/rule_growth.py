"""How the number of rules that a new connection passes grows with the number of Services."""

import json
import random

import msgspec

from benchmarks.figures import count
from benchmarks.population import PORT, Population, Shape, Size
from benchmarks.results import Passed
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
    """The rules passed at one size, and those that kube-proxy's list of Services would take."""

    size: Size
    passed: Passed
    list: float


def nat_rules(saved: str) -> IptablesRuleset:
    """The nat table in the output of iptables-save, or in a restore input for an empty table."""
    return IptablesRuleset({"nat": parse_tables(saved).get("nat", {})})


def rules_passed(rules: IptablesRuleset, population: Population) -> Passed:
    """The mean over random Services, for a pod and a machine outside of the cluster.

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

    return Passed(from_pod=mean(POD, "br0"), from_outside=mean(CLIENT_IPV4, "eth0"))


def growth(size: Size, shape: Shape) -> Growth:
    """Compute it for one size without any kernel, from the very text that would be loaded."""
    population = Population(size, PODS, shape)
    passed = rules_passed(planned_rules(population), population)
    return Growth(size, passed, size.services / 2)


def planned_rules(population: Population) -> IptablesRuleset:
    """The nat rules that svcproxy's iptables mode writes for a population into an empty table."""
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
    """Stands in for the programs: the kernel is empty, and keeps nothing but the inputs."""

    def __init__(self) -> None:
        self.variant = Variant.LEGACY  # loads everything in one input
        self.family = IPFamily.IPV4
        self.inputs: list[str] = []

    def save(self, *_tables: str) -> str:
        """Give an empty kernel's rules."""
        return ""

    def restore(self, text: str) -> None:
        """Keep the input."""
        self.inputs.append(text)


def growth_table(found: list[Growth]) -> list[list[str]]:
    """The rows of a table, with its head."""
    head = ["Services", "from a pod", "from outside", "a list, as kube-proxy's (n/2, computed)"]
    return [
        head,
        *(
            [
                count(one.size.services),
                count(one.passed.from_pod),
                count(one.passed.from_outside),
                count(one.list),
            ]
            for one in found
        ),
    ]
