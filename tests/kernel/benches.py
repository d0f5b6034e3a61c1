"""The iptables backend in a namespace of its own, driven with finished Service ports."""

import os
from collections.abc import Iterator, Mapping

import pytest

from svcproxy.backends.base import Desired, Outcome
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.iptables.core.naming import CLUSTER_PREFIX
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.desired import Changes
from testbed import netns
from testbed.netns import NetNS


class Bench:
    """A backend in a namespace of its own."""

    def __init__(self, space: NetNS, variant: Variant, family: IPFamily) -> None:
        self.space = space
        self.programs = Iptables(variant, family)
        self.family = family
        self.ports: dict[ServicePortName, ServicePort] = {}
        self.start()

    def start(self) -> None:
        """Begin as a fresh process does."""
        self.settings = settings = Settings(family=self.family)
        self.backend = IptablesBackend(self.programs, settings)
        self.space.call(self.backend.probe)

    def put(self, *ports: ServicePort) -> Outcome:
        """Change Service ports step by step, as the loop does."""
        changed: dict[ServicePortName, ServicePort | None] = {port.name: port for port in ports}
        self.ports.update({port.name: port for port in ports})

        def sync() -> Outcome:
            plan = self.backend.plan_changes(Changes(changed), self.settings)
            assert plan is not None
            return self.backend.apply(plan)

        return self.space.call(sync)

    def compare(self, ports: Mapping[ServicePortName, ServicePort] | None = None) -> Outcome:
        """Compare from scratch."""
        if ports is not None:
            self.ports = dict(ports)
        desired = Desired(dict(self.ports), self.settings)
        return self.space.call(
            lambda: self.backend.apply(self.backend.plan(desired, self.backend.read()))
        )

    def saved(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return parse(self.space.call(lambda: self.programs.save("filter", "nat")))

    def serves(self, port: ServicePort) -> bool:
        """Whether a cluster IP leads to this port's chain, and rules to all its endpoints."""
        nat = self.saved()["nat"]
        chain = CLUSTER_PREFIX + port_hash(port.name)
        text = "\n".join(rule for name, rules in nat.items() for rule in rules)
        leads = f"-j {chain}" in text and nat.get(chain)
        return bool(leads) and all(
            f"--to-destination {e.address}:{e.port}" in text for e in port.cluster_endpoints
        )


@pytest.fixture
def space() -> Iterator[NetNS]:
    """A namespace of its own."""
    made = NetNS(f"svp-bench-{os.getpid()}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], netns=made.name)
    yield made
    netns.remove([made.name])


@pytest.fixture
def bench(space: NetNS, variant: Variant) -> Bench:
    """A backend for IPv4 that has programmed nothing yet but its own chains."""
    made = Bench(space, variant, IPFamily.IPV4)
    made.compare({})
    return made


def frontend(
    kind: FrontendKind, address: str, number: int, verdict: Verdict = Verdict.FORWARD
) -> Frontend:
    return Frontend(kind, address, number, local=verdict is Verdict.DROP, verdict=verdict)


def port(
    number: int,
    name: str = "",
    *,
    protocol: Protocol = Protocol.TCP,
    target: int = 8080,
    affinity: int = 0,
    address: str = "",
    endpoint: str = "",
) -> ServicePort:
    """A Service port with a cluster IP, a load-balancer IP with no endpoint here, and a health port."""
    key = ServicePortName("ns", name or f"s{number}", "http", protocol)
    frontends = (
        frontend(FrontendKind.CLUSTER_IP, address or f"10.96.0.{number}", 80),
        frontend(FrontendKind.EXTERNAL_IP, f"203.0.113.{number}", 80, Verdict.DROP),
    )
    return ServicePort(
        key,
        frontends,
        (Endpoint(endpoint or f"10.244.1.{number}", target),),
        (),
        affinity_seconds=affinity,
        health_check_node_port=31000 + number,
    )


def by_name(*ports: ServicePort) -> dict[ServicePortName, ServicePort]:
    return {port.name: port for port in ports}


def command(bench: Bench, *arguments: str) -> tuple[str, ...]:
    return (bench.programs._list, *arguments)
