"""The printers of IPVS mode print what ``ipvsadm``, ``ipset`` and ``ip`` list."""

from collections.abc import Iterator
from itertools import groupby

import pytest
from msgspec import structs

from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.explain.core.ipvs_print import address_lines, server_lines, set_lines
from svcproxy.explain.core.rendered_ipvs import rendered
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from testbed.netns import NetNS
from tests.kernel_ipvs.test_backend import Bench


@pytest.fixture
def bench(alone: NetNS, family: IPFamily) -> Iterator[Bench]:
    made = Bench(alone, family)
    yield made
    made.close()


def ports(family: IPFamily) -> list[ServicePort]:
    prefix = "10.96.0." if family is IPFamily.IPV4 else "fd00:10:96::"
    pod = "10.244.1." if family is IPFamily.IPV4 else "fd00:10:244:1::"
    ranges = ("198.51.100.0/28", "0.0.0.0/1") if family is IPFamily.IPV4 else ("fd00:198::/64",)
    here, there = Endpoint(f"{pod}1", 8080, is_local=True), Endpoint(f"{pod}2", 8080)

    def frontend(
        kind: FrontendKind, number: int, verdict: Verdict = Verdict.FORWARD, *, local: bool = False
    ) -> Frontend:
        address = "" if kind is FrontendKind.NODE_PORT else f"{prefix}{number}"
        port = 30080 if kind is FrontendKind.NODE_PORT else 80
        return Frontend(kind, address, port, local, verdict)

    def port(name: str, *frontends: Frontend, **more: object) -> ServicePort:
        protocol = Protocol(str(more.pop("protocol", "TCP")))
        key = ServicePortName("default", name, "http", protocol)
        return ServicePort(key, frontends, (here, there), (here,), **more)  # type: ignore[arg-type]

    cluster, external = FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP
    balancer, node = FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT
    return [
        port("web", frontend(cluster, 1), frontend(external, 2), frontend(node, 0)),
        port("sticky", frontend(cluster, 3), affinity_seconds=10800),
        port("udp", frontend(cluster, 4), protocol="UDP"),
        port("sctp", frontend(cluster, 5), protocol="SCTP"),
        port(
            "balanced",
            frontend(cluster, 6),
            frontend(balancer, 7, local=True),
            source_ranges=ranges,
            health_check_node_port=32000,
        ),
        structs.replace(
            port("empty", frontend(cluster, 8, Verdict.REJECT)),
            cluster_endpoints=(),
            local_endpoints=(),
        ),
    ]


def test_the_printers_agree_with_the_tools(bench: Bench, family: IPFamily) -> None:
    made = {port.name: port for port in ports(family)}
    bench.ports = dict(made)
    bench.resync()
    here = rendered(made, IpvsSettings(**structs.asdict(bench.settings)))
    listed = bench.space.run("ipvsadm", "-L", "-n").stdout.splitlines()[3:]
    assert blocks(listed) == blocks(list(server_lines(here)))
    saved = bench.space.run("ipset", "save").stdout.splitlines()
    entries = [" ".join(line.split()) for line in saved if line.startswith("add ")]
    assert sorted(entries) == sorted(set_lines(here.rules.sets))
    shown = bench.space.run("ip", "-o", "address", "show", "dev", "kube-ipvs0", "scope", "global")
    found = {line.split()[3].partition("/")[0] for line in shown.stdout.splitlines()}
    assert found == {line.split()[3] for line in address_lines(here)}


def blocks(lines: list[str]) -> list[list[str]]:
    """Virtual servers, each with its real servers in any order; white space is evened out."""
    numbers = iter(range(len(lines)))
    number = 0
    keyed = []
    for line in lines:
        number = number if line.startswith("  ->") else next(numbers)
        keyed.append((number, " ".join(line.split())))
    found = ([line for _, line in group] for _, group in groupby(keyed, lambda pair: pair[0]))
    return sorted([head, *sorted(real)] for head, *real in found)
