"""Service ports and tables for tests of nftables mode."""

from collections.abc import Iterable

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from tests.unit.nftables.fake_kernel import FakeKernel
from tests.unit.nftables.packets import Node, Packet

VIP = {IPFamily.IPV4: "10.96.0.10", IPFamily.IPV6: "fd00:10:96::10"}
BALANCER = {IPFamily.IPV4: "203.0.113.1", IPFamily.IPV6: "fd00:203::1"}
NODE = {IPFamily.IPV4: "192.168.50.1", IPFamily.IPV6: "fd00:192:168:50::1"}
CLIENT = {IPFamily.IPV4: "198.51.100.", IPFamily.IPV6: "fd00:198::"}
POD = {IPFamily.IPV4: "10.244.1.", IPFamily.IPV6: "fd00:10:244:1::"}
PODS = {IPFamily.IPV4: "10.244.0.0/16", IPFamily.IPV6: "fd00:10:244::/56"}
NODE_PORT = 30080


def options(family: IPFamily, **more: object) -> NftablesSettings:
    given = {"local_traffic": LocalTraffic(source=PODS[family]), **more}
    return NftablesSettings(family=family, **given)  # type: ignore[arg-type]


def endpoints(family: IPFamily, numbers: Iterable[int], port: int = 8080) -> tuple[Endpoint, ...]:
    """Return endpoints; those with even numbers are on this node."""
    return tuple(Endpoint(f"{POD[family]}{n}", port, n % 2 == 0) for n in numbers)


def service_port(
    family: IPFamily,
    numbers: Iterable[int] = (1, 2, 3),
    *,
    name: str = "web",
    vip: str = "",
    external: bool = False,
    local: bool = False,
    verdict: Verdict = Verdict.FORWARD,
    seconds: int = 0,
    ranges: tuple[str, ...] = (),
) -> ServicePort:
    """Return a Service port.

    Args:
        family: its IP family.
        numbers: the numbers of its endpoints; those with even numbers are on this node.
        name: the name of the Service.
        vip: its cluster IP.
        external: whether it has a load-balancer IP and a node port.
        local: whether its external traffic policy is Local.
        verdict: the verdict of all frontends.
        seconds: the affinity time-out, 0 for no affinity.
        ranges: the source ranges of the load balancer.
    """
    frontends = [
        Frontend(FrontendKind.CLUSTER_IP, vip or VIP[family], 80, local=False, verdict=verdict)
    ]
    if external:
        frontends += [
            Frontend(FrontendKind.LOAD_BALANCER, BALANCER[family], 80, local, verdict),
            Frontend(FrontendKind.NODE_PORT, "", NODE_PORT, local, verdict),
        ]
    found = endpoints(family, numbers)
    return ServicePort(
        ServicePortName("default", name, "http", Protocol.TCP),
        tuple(frontends),
        found,
        tuple(e for e in found if e.is_local) if local else (),
        affinity_seconds=seconds,
        source_ranges=ranges,
    )


class Bench:
    """A planner, a fake kernel, and a node that passes packets through the kernel's rules."""

    def __init__(self, settings: Settings, *ports: ServicePort) -> None:
        self.settings = settings
        self.family = settings.family
        self.planner = Planner(settings)
        self.kernel = FakeKernel(settings.family)
        desired = Desired({port.name: port for port in ports}, self.settings)
        self.kernel.apply(self.planner.plan(desired, settings, self.kernel.observed()))
        self.node = Node(self.kernel, (NODE[settings.family],))

    def change(self, *ports: ServicePort) -> dict[str, int]:
        """Add or change Service ports; return the operations."""
        plan = self.planner.plan_changes({port.name: port for port in ports})
        self.kernel.apply(plan)
        return plan.operations

    def remove(self, *ports: ServicePort) -> dict[str, int]:
        """Delete Service ports; return the operations."""
        plan = self.planner.plan_changes({port.name: None for port in ports})
        self.kernel.apply(plan)
        return plan.operations

    def packet(self, source: str, destination: str, port: int, **more: object) -> Packet:
        return Packet(source, destination, port, **more)  # type: ignore[arg-type]

    def client(self, number: int) -> str:
        return f"{CLIENT[self.family]}{number}"

    def pod(self, number: int) -> str:
        return f"{POD[self.family]}{number}"

    def reach(self, source: str, destination: str, port: int, chosen: float = 0.0) -> str:
        """Return the address that a packet is translated to, or else its verdict."""
        packet = Packet(source, destination, port, chosen=chosen)
        verdict = self.node.send(packet)
        return packet.translated[0] if packet.translated else verdict
