"""Removing many rules from a shared chain of the filter table."""

import random

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.rule_text import FILTER
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort, Verdict
from tests.fakes.restored_tables import RestoredTables

SETTINGS = IptablesSettings(family=IPFamily.IPV4)
Ports = dict[ServicePortName, ServicePort]


def without_endpoints(count: int) -> Ports:
    ports = {}
    for number in range(count):
        name = ServicePortName("tenant", "web", f"p{number}", Protocol.TCP)
        frontend = Frontend(
            FrontendKind.CLUSTER_IP, "10.96.0.9", number + 1, local=False, verdict=Verdict.REJECT
        )
        ports[name] = ServicePort(name, (frontend,), (), ())
    return ports


def programmed(ports: Ports) -> tuple[Planner, RestoredTables]:
    planner, kernel = Planner(SETTINGS), RestoredTables()
    kernel.restore(
        planner.plan(Desired(ports, SETTINGS), SETTINGS, Observed(kernel.saved())).text()
    )
    return planner, kernel


def removed(plan: Plan) -> int:
    return sum(line.startswith("-D ") for line in plan.text().splitlines())


def test_many_removals_replace_the_whole_chain() -> None:
    """One by one, these removals would take 38 s in iptables-nft-restore."""
    ports = without_endpoints(5000)
    planner, kernel = programmed(ports)
    gone = random.Random(1).sample(sorted(ports), 4900)
    plan = planner.plan_changes(dict.fromkeys(gone))
    assert removed(plan) == 0
    kernel.restore(plan.text())
    left = {name: port for name, port in ports.items() if name not in gone}
    _, expected = programmed(left)
    service_chain = kernel.saved()[FILTER][naming.SERVICES]
    assert sorted(service_chain) == sorted(expected.saved()[FILTER][naming.SERVICES])
    assert len(service_chain) == 100


def test_the_plan_can_be_undone() -> None:
    ports = without_endpoints(5000)
    planner, kernel = programmed(ports)
    before = sorted(kernel.saved()[FILTER][naming.SERVICES])
    kernel.restore(planner.plan_changes(dict.fromkeys(list(ports)[:4900])).text())
    kernel.restore(Plan({FILTER: planner.undo(), "nat": type(planner.undo())()}, {}).text())
    assert sorted(kernel.saved()[FILTER][naming.SERVICES]) == before


def test_few_removals_are_made_one_by_one() -> None:
    ports = without_endpoints(5000)
    planner, _ = programmed(ports)
    assert removed(planner.plan_changes(dict.fromkeys(list(ports)[:50]))) == 50
