"""The sizes of legacy tables show whether another process has changed them."""

import socket
import sys
from collections.abc import Iterator

import pytest

from svcproxy.backends.xtables.change_tracker import TableSizeTracker
from svcproxy.backends.xtables.table_sizes import table_sizes
from svcproxy.model.names import IPFamily
from testbed import netns
from testbed.netns import NetNS

pytestmark = pytest.mark.kernel

RULES = """*nat
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d {net}1 -j RETURN
-A PREROUTING -j KUBE-SERVICES
COMMIT
*filter
-A FORWARD -d {net}1 -j ACCEPT
COMMIT
"""


class Tables:
    """The legacy tables of one family in a network namespace, and a tracker of their sizes."""

    def __init__(self, space: NetNS, family: IPFamily) -> None:
        self.space = space
        self.program = "ip6tables-legacy" if family is IPFamily.IPV6 else "iptables-legacy"
        self.net = "fd00::" if family is IPFamily.IPV6 else "10.0.0."
        self.family = family
        self.tracker = TableSizeTracker(family)
        space.run(f"{self.program}-restore", stdin=RULES.format(net=self.net))

    def change(self, *arguments: str) -> None:
        self.space.run(self.program, *arguments)

    def send(self) -> None:
        """Send a packet to this machine."""
        ipv6 = self.program.startswith("ip6")
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            made.sendto(b"x", ("::1" if ipv6 else "127.0.0.1", 9))

    @property
    def unchanged(self) -> bool:
        return self.space.call(self.tracker.is_unchanged)

    def read(self) -> None:
        self.space.call(self.tracker.before_read)

    def write(self, *arguments: str) -> None:
        """Change something the way svcproxy does."""
        self.space.call(self.tracker.before_write)
        self.change(*arguments)
        self.space.call(lambda: self.tracker.after_write(1))


@pytest.fixture(params=list(IPFamily))
def tables(request: pytest.FixtureRequest) -> Iterator[Tables]:
    space = NetNS(f"svp-print-{id(object())}")
    netns.ip_batch([f"netns add {space.name}"])
    yield Tables(space, request.param)
    netns.remove([space.name])


def test_tables_count_as_changed_before_the_first_read(tables: Tables) -> None:
    assert not tables.unchanged
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert not tables.unchanged


@pytest.mark.parametrize(
    "damage",
    [
        ["-t", "nat", "-F"],
        ["-t", "nat", "-F", "KUBE-SERVICES"],
        ["-t", "nat", "-D", "PREROUTING", "1"],
        ["-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN"],
        ["-t", "nat", "-N", "OTHERS"],
        ["-t", "filter", "-F"],
        ["-t", "filter", "-D", "FORWARD", "1"],
    ],
    ids=" ".join,
)
def test_additions_and_deletions_by_other_processes_are_noticed(
    tables: Tables, damage: list[str]
) -> None:
    tables.read()
    assert tables.unchanged
    tables.change(*damage)
    assert not tables.unchanged


def test_traffic_is_not_a_change(tables: Tables) -> None:
    """Packet counters are not part of the sizes."""
    tables.change("-A", "OUTPUT", "-j", "ACCEPT")
    tables.read()
    netns.ip_batch(["link set lo up"], tables.space.name)
    tables.space.call(tables.send)
    counted = tables.space.run(tables.program, "-L", "OUTPUT", "-v", "-x").stdout
    assert counted.splitlines()[2].split()[0] != "0"
    assert tables.unchanged


def test_own_writes_are_not_changes(tables: Tables) -> None:
    tables.read()
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert tables.unchanged
    tables.change("-t", "nat", "-X", "KUBE-SVC-A")
    assert not tables.unchanged


def test_an_own_write_does_not_hide_a_change_by_another_process(tables: Tables) -> None:
    tables.read()
    tables.change("-t", "nat", "-F", "KUBE-SERVICES")
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert not tables.unchanged


def test_replacing_a_rule_by_one_of_the_same_length_goes_unnoticed(tables: Tables) -> None:
    """Therefore the loop never skips every tenth resync."""
    tables.read()
    tables.change("-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", f"{tables.net}2", "-j", "RETURN")
    assert tables.unchanged


def test_the_sizes_are_unknown_without_net_admin(tables: Tables) -> None:
    program = (
        "from svcproxy.backends.xtables.table_sizes import table_sizes\n"
        "from svcproxy.model.names import IPFamily\n"
        f"print(table_sizes(IPFamily('{tables.family}')))\n"
    )
    done = tables.space.run("setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program)
    assert done.stdout == "None\n"
    assert tables.space.call(lambda: table_sizes(tables.family)) is not None
