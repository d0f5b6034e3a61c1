"""What a real kernel holds of IPVS mode against the desired state: words, objects, reading."""

import socket
from collections.abc import Iterator, Sequence

import pytest

from svcproxy.backends.base import Desired
from svcproxy.explain.core.differences import Difference
from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.trace import trace
from svcproxy.explain.ipvs_explainer import EXPLAINER
from svcproxy.explain.ipvs_reader import IpvsKernel
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.kernel_ipvs.test_backend import Bench
from tests.kernel_ipvs.test_printed import blocks, ports


@pytest.fixture
def bench(alone: NetNS, family: IPFamily) -> Iterator[Bench]:
    made = Bench(alone, family)
    made.ports = {port.name: port for port in ports(family)}
    made.resync()
    yield made
    made.close()


def read(bench: Bench) -> IpvsKernel:
    own = bench.backend._planner.settings
    return bench.space.call(lambda: EXPLAINER.read(own, "legacy"))


def compared(bench: Bench) -> Sequence[Difference]:
    own = bench.backend._planner.settings
    return EXPLAINER.differences(Desired(bench.ports, own), read(bench))


def words(found: Sequence[Difference]) -> dict[str, str]:
    return {str(each): " ".join(sorted({n.name for n in each.service_ports})) for each in found}


def at(family: IPFamily, number: int, port: int = 80) -> str:
    return (
        f"10.96.0.{number}:{port}" if family is IPFamily.IPV4 else f"[fd00:10:96::{number}]:{port}"
    )


def pod(family: IPFamily, number: int) -> str:
    return (
        f"10.244.1.{number}:8080" if family is IPFamily.IPV4 else f"[fd00:10:244:1::{number}]:8080"
    )


def test_each_damage_is_named(bench: Bench, family: IPFamily) -> None:
    run, web = bench.space.run, f"virtual server TCP {at(family, 1)}"
    assert not compared(bench)
    run("ipvsadm", "-d", "-t", at(family, 1), "-r", pod(family, 2))
    assert words(compared(bench)) == {f"real server {pod(family, 2)} of {web}: missing": "web"}
    run("ipvsadm", "-a", "-t", at(family, 1), "-r", pod(family, 2), "-m", "-w", "3")
    (found,) = compared(bench)
    assert words([found]) == {f"real server {pod(family, 2)} of {web}: different": "web"}
    assert found.actual == f"  -> {pod(family, 2)} Masq 3 0 0"
    run("ipvsadm", "-e", "-t", at(family, 1), "-r", pod(family, 2), "-m", "-w", "1")
    run("ipvsadm", "-a", "-t", at(family, 1), "-r", pod(family, 9), "-m", "-w", "0")
    assert not compared(bench), "a real server of weight 0 drains"
    run("ipvsadm", "-E", "-t", at(family, 1), "-s", "lc")
    assert words(compared(bench)) == {f"{web}: different": "web"}
    run("ipvsadm", "-D", "-t", at(family, 1))
    (found,) = compared(bench)
    assert words([found]) == {f"{web}: missing": "web"}
    assert blocks(found.desired.splitlines()) == [
        [f"TCP {at(family, 1)} rr", *(f"-> {pod(family, n)} Masq 1 0 0" for n in (1, 2))]
    ]


def test_damage_to_sets_addresses_and_rules_is_named(bench: Bench, family: IPFamily) -> None:
    run = bench.space.run
    address = at(family, 4).rpartition(":")[0].strip("[]")
    prefix = "KUBE-" if family is IPFamily.IPV4 else "KUBE-6-"
    run("ipset", "del", f"{prefix}CLUSTER-IP", f"{address},udp:80")
    bits = "32" if family is IPFamily.IPV4 else "128"
    run("ip", "address", "del", f"{address}/{bits}", "dev", "kube-ipvs0")
    tool = "iptables-legacy" if family is IPFamily.IPV4 else "ip6tables-legacy"
    run(tool, "-t", "nat", "-F", "PREROUTING")
    found = compared(bench)
    assert words(found) == {
        f"entry {address},udp:80 of ipset {prefix}CLUSTER-IP: missing": "udp",
        f"address {address} on kube-ipvs0: missing": "udp",
        "jump from PREROUTING to KUBE-SERVICES in table nat: missing": "",
    }
    for each in found:
        if each.desired.startswith("add "):
            run("ipset", *each.desired.split())
        elif each.desired.startswith("ip "):
            run(*each.desired.split())
    assert len(compared(bench)) == 1
    bench.resync()
    assert not compared(bench)


def test_objects_are_what_the_tools_list(bench: Bench, family: IPFamily) -> None:
    listed = bench.space.run("ipvsadm", "-L", "-n").stdout.splitlines()
    tool = "iptables-legacy" if family is IPFamily.IPV4 else "ip6tables-legacy"
    texts = {
        " ".join(line.split())
        for line in (
            *listed,
            *bench.space.run("ipset", "save").stdout.splitlines(),
            *bench.space.run(f"{tool}-save").stdout.splitlines(),
        )
    }
    ruleset = EXPLAINER.ruleset(read(bench))
    for port in bench.ports.values():
        lines = EXPLAINER.objects(ruleset, port, bench.backend._planner.settings)
        assert lines
        tools = [" ".join(line.split()) for line in lines if not line.startswith("ip address")]
        assert set(tools) <= texts


def test_a_persistent_client_is_traced_to_its_endpoint(bench: Bench, family: IPFamily) -> None:
    address = at(family, 3).rpartition(":")[0].strip("[]")
    number = socket.AF_INET if family is IPFamily.IPV4 else socket.AF_INET6

    def connect() -> None:
        with socket.socket(number, socket.SOCK_STREAM) as client:
            client.settimeout(0.0)
            client.connect_ex((address, 80))

    def is_remembered() -> bool:
        bench.space.call(connect)
        return bool(read(bench).persistent)

    packet = Packet(address, address, 80, interface="")
    before = trace(packet, EXPLAINER.ruleset(read(bench)), Host())
    assert len({verdict.endpoint for verdict in before.verdicts}) == 2
    eventually(is_remembered)
    kernel = read(bench)
    after = trace(packet, EXPLAINER.ruleset(kernel), Host())
    assert {verdict.endpoint for verdict in after.verdicts} == set(kernel.persistent.values())
    assert len(kernel.persistent) == 1
