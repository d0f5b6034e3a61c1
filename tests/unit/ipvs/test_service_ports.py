"""Service ports of one Service, and their hidden ports."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.ipvs.core import planner as planner_module
from svcproxy.backends.ipvs.core.planner import ServicePorts
from svcproxy.backends.ipvs.core.port_state import hidden_port, ports_taken
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict

ENDPOINTS = (Endpoint("10.244.0.1", 8080),)


def port(number: int) -> ServicePort:
    """A port that needs a hidden port for its second endpoint list."""
    name = ServicePortName("ns", "s", f"p{number}", Protocol.TCP)
    frontends = (
        Frontend(
            FrontendKind.CLUSTER_IP, "10.96.0.1", number, local=False, verdict=Verdict.FORWARD
        ),
        Frontend(
            FrontendKind.EXTERNAL_IP, "203.0.113.1", number, local=True, verdict=Verdict.FORWARD
        ),
    )
    return ServicePort(name, frontends, ENDPOINTS, ENDPOINTS)


@given(st.sets(st.integers(1, 65535), max_size=20), st.data())
def test_hidden_ports_are_distinct_and_free(numbers: set[int], data: st.DataObject) -> None:
    near = {(n - 1 + 32768) % 65535 + 1 for n in numbers if data.draw(st.booleans())}
    taken = numbers | near
    hidden = [hidden_port(number, taken) for number in sorted(taken)]
    for number, found in zip(sorted(taken), hidden, strict=True):
        assert found not in taken
        others = {(n - 1 + 32768) % 65535 + 1 for n in taken if n != number}
        assert found not in others


def test_a_service_with_many_ports_costs_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a Service with 2,000 ports would delay all changes for half a minute."""
    counted_ports = 0

    def counted(ports: Iterator[ServicePort]) -> dict[Protocol, set[int]]:
        nonlocal counted_ports
        found = list(ports)
        counted_ports += len(found)
        return ports_taken(iter(found))

    monkeypatch.setattr(planner_module, "ports_taken", counted)
    settings = IpvsSettings(family=IPFamily.IPV4)
    held = ServicePorts()
    many = [port(number) for number in range(1, 2001)]
    for each in many:
        held.put(each.name, each)
    servers = {key for each in many for key in held.state(each.name, settings).servers}
    assert len(servers) == 2 * len(many)
    assert counted_ports == len(many)
    held.put(many[0].name, None)
    held.state(many[1].name, settings)
    assert counted_ports == 2 * len(many) - 1, "the cached ports of the Service are outdated"
