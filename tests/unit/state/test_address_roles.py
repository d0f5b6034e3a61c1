"""An address that a Service lists in several roles has one frontend."""

import pytest

from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import Service, ServicePortSpec
from svcproxy.model.serviceport import Frontend, FrontendKind
from svcproxy.state.desired import DesiredState

VIP, OUTSIDE = "10.96.0.1", "203.0.113.1"


def _frontends(external: tuple[str, ...], balancer: tuple[str, ...]) -> tuple[Frontend, ...]:
    state = DesiredState(IPFamily.IPV4, "node1")
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    state.update_service(
        Service(
            NamespacedName("ns", "web"),
            ports,
            (VIP,),
            external_ips=external,
            load_balancer_ips=balancer,
        )
    )
    (port,) = state.checkout().ports.values()
    assert port is not None
    return port.frontends


@pytest.mark.parametrize(
    ("external", "balancer", "expected"),
    [
        ((OUTSIDE,), (), (FrontendKind.EXTERNAL_IP, False)),
        ((), (OUTSIDE,), (FrontendKind.LOAD_BALANCER, True)),
        ((OUTSIDE,), (OUTSIDE,), (FrontendKind.EXTERNAL_IP, True)),
        ((VIP,), (), (FrontendKind.CLUSTER_IP, False)),
        ((), (VIP,), (FrontendKind.CLUSTER_IP, True)),
        ((VIP, OUTSIDE), (OUTSIDE, VIP), (FrontendKind.EXTERNAL_IP, True)),
    ],
)
def test_the_first_role_is_the_kind_and_others_are_kept(
    external: tuple[str, ...],
    balancer: tuple[str, ...],
    expected: tuple[FrontendKind, bool],
) -> None:
    found = _frontends(external, balancer)
    assert len({f.address for f in found}) == len(found), "one frontend for each address"
    last = found[-1]
    assert (last.kind, last.is_load_balancer) == expected
