"""The iptables rules of a real kernel against the desired ones: words, objects, reading."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.explain.core.differences import Difference
from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.trace import trace
from svcproxy.explain.iptables_explainer import EXPLAINER
from svcproxy.explain.iptables_reader import IptablesKernel
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from testbed.netns import NetNS
from tests.kernel.test_nftables_table import one_of_each
from tests.unit.nftables.services import POD, PODS, VIP

pytestmark = pytest.mark.kernel


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


@pytest.fixture(params=list(Variant))
def kind(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


class Node:
    """A namespace whose rules a backend has programmed."""

    def __init__(self, space: NetNS, family: IPFamily, kind: Variant) -> None:
        self.space = space
        self.family = family
        self.kind = kind
        self.settings = Settings(family, local_traffic=LocalTraffic(source=PODS[family]))
        self.ports: dict[Any, ServicePort] = {p.name: p for p in one_of_each(family)}
        self.backend = IptablesBackend(Iptables(kind, family), self.settings)
        self.desired = Desired(self.ports, self.settings)

    def sync(self) -> dict[str, int]:
        def resync() -> dict[str, int]:
            plan = self.backend.plan(Desired(self.ports, self.settings), self.backend.read())
            return dict(self.backend.apply(plan).operations)

        return self.space.call(resync)

    def run(self, arguments: str, action: str = "") -> str:
        tool = "ip6tables" if self.family is IPFamily.IPV6 else "iptables"
        return self.space.run(f"{tool}-{self.kind}{action}", *arguments.split()).stdout

    def saved(self) -> list[str]:
        return (self.run("-t nat", "-save") + self.run("-t filter", "-save")).splitlines()

    def read(self) -> IptablesKernel:
        own = self.backend._planner.settings
        return self.space.call(lambda: EXPLAINER.read(own, self.kind.value))

    def compared(self, kernel: IptablesKernel | None = None) -> Sequence[Difference]:
        own = self.backend._planner.settings
        return EXPLAINER.differences(Desired(self.ports, own), kernel or self.read())

    def chain(self, prefix: str, service: str) -> str:
        return prefix + port_hash(next(name for name in self.ports if name.name == service))

    def port(self, service: str) -> ServicePort:
        return next(port for name, port in self.ports.items() if name.name == service)


@pytest.fixture
def node(space: NetNS, family: IPFamily, kind: Variant) -> Node:
    made = Node(space, family, kind)
    made.space.call(made.backend.probe)
    made.sync()
    return made


def words(found: Sequence[Difference]) -> set[tuple[str, str]]:
    return {(str(each), " ".join(sorted({n.name for n in each.service_ports}))) for each in found}


def test_synced_rules_have_no_difference(node: Node) -> None:
    before = node.saved()
    assert not node.compared()
    assert [line for line in node.saved() if line[0] not in "#:"] == [
        line for line in before if line[0] not in "#:"
    ]


def test_a_flushed_chain_names_its_service(node: Node) -> None:
    chain = node.chain("KUBE-SVC-", "web")
    node.run(f"-t nat -F {chain}")
    (found,) = node.compared()
    assert words([found]) == {(f"chain {chain} of table nat: different", "web")}
    assert found.actual == ""
    assert all(line.startswith(f"-A {chain} -p tcp ") for line in found.desired.splitlines())
    assert node.sync()
    assert not node.compared()


def test_a_deleted_rule_names_the_services_behind_it(node: Node) -> None:
    chain = "KUBE-SVC-CLUSTER-IPS"
    rule = next(line for line in node.saved() if f"-A {chain} " in line and "sticky" in line)
    node.run(f"-t nat -D {chain} 1")
    found = node.compared()
    assert words(found) <= {
        (f"chain {chain} of table nat: different", name) for name in ("web", "sticky", "")
    }
    node.sync()
    number = [each for each in node.saved() if each.startswith(f"-A {chain} ")].index(rule) + 1
    node.run(f"-t nat -D {chain} {number}")
    (found_one,) = node.compared()
    assert words([found_one]) == {(f"chain {chain} of table nat: different", "sticky")}
    assert found_one.desired == rule


def test_a_foreign_rule_is_quoted(node: Node) -> None:
    chain = node.chain("KUBE-EXT-", "web")
    node.run(f"-t nat -I {chain} -p tcp --dport 99 -j RETURN")
    (found,) = node.compared()
    assert words([found]) == {(f"chain {chain} of table nat: different", "web")}
    assert (found.desired, found.actual) == ("", f"-A {chain} -p tcp -m tcp --dport 99 -j RETURN")


def test_a_comment_with_a_line_break_is_one_line(node: Node) -> None:
    """A rule of another program cannot look like several rules."""
    chain = node.chain("KUBE-EXT-", "web")
    tool = "ip6tables" if node.family is IPFamily.IPV6 else "iptables"
    comment = "x\n-A KUBE-SERVICES -j DROP"
    insert = (f"{tool}-{node.kind}", "-t", "nat", "-I", chain, "-m", "comment", "--comment")
    node.space.run(*insert, comment)
    (found,) = node.compared()
    assert len(found.actual.splitlines()) == 1
    assert r"x\n-A KUBE-SERVICES" in found.actual
    own = node.backend._planner.settings
    lines = EXPLAINER.objects(EXPLAINER.ruleset(node.read()), node.port("web"), own)
    assert not any("\n" in line for line in lines)


def test_a_missing_jump_is_named(node: Node) -> None:
    node.run("-t nat -F PREROUTING")
    assert words(node.compared()) == {
        ("jump from PREROUTING to KUBE-SERVICES in table nat: missing", "")
    }


def test_a_chain_of_a_deleted_service_is_unexpected(node: Node) -> None:
    node.run("-t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA")
    assert words(node.compared()) == {
        ("chain KUBE-SVC-AAAAAAAAAAAAAAAA of table nat: unexpected", "")
    }


def test_a_refusal_that_is_missing_names_the_service(node: Node) -> None:
    node.run("-t filter -F KUBE-SERVICES")
    (found,) = node.compared()
    assert words([found]) == {("chain KUBE-SERVICES of table filter: different", "away empty")}
    assert "has no endpoints" in found.desired


def test_empty_tables_name_every_service(node: Node) -> None:
    node.run("-t nat -F")
    node.run("-t filter -F")
    named = {name for each in node.compared() for name in each.service_ports}
    assert named == set(node.ports)


def test_objects_are_lines_of_iptables_save(node: Node) -> None:
    saved = set(node.saved())
    ruleset = EXPLAINER.ruleset(node.read())
    for port in node.ports.values():
        lines = EXPLAINER.objects(ruleset, port, node.backend._planner.settings)
        assert lines
        assert set(lines) <= saved
    lines = EXPLAINER.objects(ruleset, node.port("web"), node.backend._planner.settings)
    assert any(line.endswith(f"-j {node.chain('KUBE-SVC-', 'web')}") for line in lines)
    assert any("DNAT --to-destination" in line for line in lines)


def test_a_remembered_client_is_traced_to_its_endpoint(node: Node, family: IPFamily) -> None:
    client = "198.51.100.18" if family is IPFamily.IPV4 else "fd00:198::18"
    packet = Packet(client, f"{VIP[family]}1", 80)
    kernel = node.read()
    assert len({v.endpoint for v in trace(packet, EXPLAINER.ruleset(kernel), Host()).verdicts}) == 2
    line = next(each for each in node.saved() if "DNAT" in each and f"{POD[family]}5" in each)
    node.space.run("ipset", "add", line.split()[1], client, "timeout", "60")
    (verdict,) = trace(packet, EXPLAINER.ruleset(node.read()), Host()).verdicts
    assert verdict.endpoint in {f"{POD[family]}5:8080", f"[{POD[family]}5]:8080"}
    assert not node.compared()


def test_reading_creates_no_table(space: NetNS, family: IPFamily, kind: Variant) -> None:
    def listed() -> tuple[str, str, str]:
        return (
            space.run("nft", "list", "tables").stdout,
            space.run("cat", "/proc/net/ip_tables_names", check=False).stdout,
            space.run("cat", "/proc/net/ip6_tables_names", check=False).stdout,
        )

    before = listed()
    made = Node(space, family, kind)
    assert made.compared(), "nothing is programmed"
    assert listed() == before


def test_missing_permissions_are_explained(kind: Variant) -> None:
    program = (
        "from svcproxy.explain.iptables_explainer import EXPLAINER\n"
        "from svcproxy.backends.iptables.core.settings import IptablesSettings\n"
        "from svcproxy.model.names import IPFamily as F\n"
        "try: EXPLAINER.read(IptablesSettings(F.IPV4), 'nft')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = ["setpriv", "--reuid=nobody", "--clear-groups", "--bounding-set=-all"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("KernelUnreadableError "), done.stderr
    assert "run as root" in done.stdout
