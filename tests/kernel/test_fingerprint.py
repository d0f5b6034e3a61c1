"""The sizes of legacy tables tell whether a comparison can be spared."""

import socket
import sys
from collections.abc import Iterator

import pytest

from svcproxy.backends.xtables.fingerprint import Fingerprint, sizes
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
    """The tables of one family in a namespace of their own, and what is known of them."""

    def __init__(self, space: NetNS, family: IPFamily) -> None:
        self.space = space
        self.program = "ip6tables-legacy" if family is IPFamily.IPV6 else "iptables-legacy"
        self.net = "fd00::" if family is IPFamily.IPV6 else "10.0.0."
        self.mark = Fingerprint(family)
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
    def untouched(self) -> bool:
        return self.space.call(lambda: self.mark.untouched)

    def read(self) -> None:
        self.space.call(self.mark.reading)

    def write(self, *arguments: str) -> None:
        """Change something as ours."""
        self.space.call(self.mark.writing)
        self.change(*arguments)
        self.space.call(lambda: self.mark.written(1))


@pytest.fixture(params=list(IPFamily))
def tables(request: pytest.FixtureRequest) -> Iterator[Tables]:
    space = NetNS(f"svp-print-{id(object())}")
    netns.ip_batch([f"netns add {space.name}"])
    yield Tables(space, request.param)
    netns.remove([space.name])


def test_nothing_is_known_before_the_first_reading(tables: Tables) -> None:
    assert not tables.untouched
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert not tables.untouched


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
def test_what_others_add_or_delete_is_seen(tables: Tables, damage: list[str]) -> None:
    tables.read()
    assert tables.untouched
    tables.change(*damage)
    assert not tables.untouched


def test_traffic_is_no_change(tables: Tables) -> None:
    """Counters are not part of it."""
    tables.change("-A", "OUTPUT", "-j", "ACCEPT")
    tables.read()
    netns.ip_batch(["link set lo up"], tables.space.name)
    tables.space.call(tables.send)
    counted = tables.space.run(tables.program, "-L", "OUTPUT", "-v", "-x").stdout
    assert counted.splitlines()[2].split()[0] != "0"
    assert tables.untouched


def test_what_we_write_ourselves_is_known(tables: Tables) -> None:
    tables.read()
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert tables.untouched
    tables.change("-t", "nat", "-X", "KUBE-SVC-A")
    assert not tables.untouched


def test_a_foreign_change_cannot_hide_behind_ours(tables: Tables) -> None:
    tables.read()
    tables.change("-t", "nat", "-F", "KUBE-SERVICES")
    tables.write("-t", "nat", "-N", "KUBE-SVC-A")
    assert not tables.untouched


def test_a_rule_of_the_same_length_is_not_seen(tables: Tables) -> None:
    """That is why every tenth comparison is made all the same."""
    tables.read()
    tables.change("-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", f"{tables.net}2", "-j", "RETURN")
    assert tables.untouched


def test_without_rights_nothing_is_known(tables: Tables) -> None:
    program = (
        "from svcproxy.backends.xtables.fingerprint import sizes\n"
        "from svcproxy.model.names import IPFamily\n"
        f"print(sizes(IPFamily('{tables.mark._family}')))\n"
    )
    done = tables.space.run("setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program)
    assert done.stdout == "None\n"
    assert tables.space.call(lambda: sizes(tables.mark._family)) is not None
