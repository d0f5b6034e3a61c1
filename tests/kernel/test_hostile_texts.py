"""Hostile names, rules of other programs and unusual addresses, in the real kernel.

The tests call the iptables backend directly, without the parser that validates names: this is the
second line of defence behind ``test_hostile_names``. No traffic is sent.
"""

import subprocess
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from svcproxy.backends.iptables.cleanup import remove_stale_chains
from svcproxy.backends.xtables.commands import Variant
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, FrontendKind, ServicePort, Verdict
from testbed.netns import NetNS
from tests.kernel.benches import Bench, bench, by_name, command, frontend, port, space

__all__ = ["bench", "space"]

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("variant", [pytest.param(v, id=v.value) for v in Variant]),
]

INPUT_JUMPS = 4
"""Three of svcproxy's chains, and the one that kubelet also creates."""

HOSTILE = (
    'a"\n-A INPUT -p tcp --dport 22 -j DROP\n-A INPUT -p tcp -m comment --comment "',
    'one"quote',
    "one'quote\\",
    "line\nCOMMIT\n*filter\n:INPUT DROP [0:0]",
    "carriage\rreturn\ttab\0nul",
    "Ünïcode \u2028 \udcff",
    "-j ACCEPT -m comment --comment x",
    "x" * 5000,
    "",
    " ",
    "%s $(reboot) `id` !",
)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("step", ["incremental", "scratch"])
@pytest.mark.behaviour("The kernel: Hostile names")
def test_a_hostile_name_writes_no_rule_of_its_own(bench: Bench, name: str, step: str) -> None:
    before = bench.saved()["filter"]
    hostile = port(1, name)
    hostile = structs.replace(hostile, name=ServicePortName(name, name, name, Protocol.TCP))
    others = [port(number) for number in range(2, 6)]
    if step == "scratch":
        outcome = bench.compare(by_name(hostile, *others))
    else:
        outcome = bench.put(hostile, *others)
    assert all(map(bench.serves, others))
    tables = bench.saved()
    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        assert tables["filter"][chain] == before[chain]
    assert set(tables["filter"]) == set(before)
    served = 5 - len(outcome.refused)
    assert len(tables["filter"]["KUBE-NODEPORTS"]) == served
    assert len(tables["filter"]["KUBE-EXTERNAL-SERVICES"]) == served
    # The rules read back are identical to those written.
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert set(again.refused) == set(outcome.refused)


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=8, unique=True))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.behaviour("The kernel: Hostile names")
def test_any_names_read_back_as_written(bench: Bench, names: list[tuple[str, str, str]]) -> None:
    ports = [port(number) for number in range(1, len(names) + 1)]
    named = [
        structs.replace(made, name=ServicePortName(*name, Protocol.TCP))
        for made, name in zip(ports, names, strict=True)
    ]
    assert not bench.compare(by_name(*named)).refused
    filters = bench.saved()["filter"]
    assert len(filters["KUBE-NODEPORTS"]) == len(names)
    assert len(filters["KUBE-EXTERNAL-SERVICES"]) == len(names)
    assert len(filters["INPUT"]) == INPUT_JUMPS
    bench.start()
    assert not bench.compare().operations


COMPATIBLE = (
    "::1.2.3.4",
    "::ffff:0:1.2.3.4",
    "::102:304",
    "::1",
    "::5:0",
    "fd00::1.2.3.4",
    "::ffff:1.2.3.4",
)


@pytest.mark.behaviour("The kernel: Idle")
def test_ipv6_addresses_are_written_once(space: NetNS, variant: Variant) -> None:
    bench = Bench(space, variant, IPFamily.IPV6)
    ports = []
    for number, address in enumerate(str(ip_address(text)) for text in COMPATIBLE):
        frontends = (
            frontend(FrontendKind.CLUSTER_IP, address, 80 + number),
            frontend(FrontendKind.LOAD_BALANCER, address, 180 + number),
            frontend(FrontendKind.EXTERNAL_IP, address, 280 + number, Verdict.REJECT),
        )
        ports.append(
            ServicePort(
                ServicePortName("ns", f"s{number}", "", Protocol.TCP),
                frontends,
                (Endpoint(address, 8080),),
                (),
                affinity_seconds=60 * (number % 2),
                source_ranges=("::102:0/112", "::1.2.3.0/120", "::ffff:0:0/96", "fd00::/8"),
            )
        )
    many = [
        ServicePort(
            ServicePortName("ns", f"m{number}", "", Protocol.TCP),
            (frontend(FrontendKind.CLUSTER_IP, f"::1:{number:x}", 80),),
            (Endpoint(f"::2:{number:x}", 80),),
            (),
        )
        for number in range(1, 100)
    ]
    assert not bench.compare(by_name(*ports, *many)).refused
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert not again.refused


FOREIGN = (
    "a\n-A INPUT -j KUBE-EXTERNAL-SERVICES\nCOMMIT\n*nat\n:KUBE-SVC-FORGED - [0:0]",
    "q\"\\'\nCOMMIT\n*nat\n-A KUBE-SERVICES -j ACCEPT",
    "cr\r-A KUBE-SERVICES -j ACCEPT\rCOMMIT",
)


@pytest.mark.behaviour("The kernel: Unusual rules of other programs")
def test_foreign_rules_do_not_disturb(bench: Bench) -> None:
    """Comments with newlines and invalid UTF-8, interfaces and chains with quotes."""
    bench.put(port(1), port(2))
    for note in (*(text.encode() for text in FOREIGN), b"\xff\xfe \x80"):
        os_run(bench, b"-A", b"INPUT", b"-m", b"comment", b"--comment", note, b"-j", b"ACCEPT")
    os_run(bench, b"-A", b"FORWARD", b"-i", b'"odd', b"-j", b"ACCEPT")
    os_run(bench, b"-A", b"FORWARD", b"-i", b'a"b', b"-m", b"comment", b"--comment", b"x\nCOMMIT")
    os_run(bench, b"-N", b'"chain')
    os_run(bench, b"-N", b'KUBE-SVC-"odd', table=b"nat")
    os_run(bench, b"-A", b"OUTPUT", b"-j", b'"chain')
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert bench.serves(port(1))
    assert not bench.put(port(3)).refused
    # They do not hide missing rules of svcproxy either.
    bench.space.run(*command(bench, "-t", "filter", "-F", "FORWARD"))
    bench.space.run(*command(bench, "-t", "filter", "-F", "KUBE-NODEPORTS"))
    assert bench.compare().operations["rule_written"]
    assert len(bench.saved()["filter"]["KUBE-NODEPORTS"]) == 3
    assert any("-j KUBE-FORWARD" in rule for rule in bench.saved()["filter"]["FORWARD"])
    programs = bench.programs
    bench.space.call(lambda: remove_stale_chains(programs.variant, programs.family))
    left = {chain for table in bench.saved().values() for chain in table if "KUBE-SVC" in chain}
    assert left == {'KUBE-SVC-"odd'}


def os_run(bench: Bench, *arguments: bytes, table: bytes = b"filter") -> None:
    command = [bench.programs._list.encode(), b"-t", table, *arguments]
    bench.space.call(lambda: subprocess.run(command, check=True))
