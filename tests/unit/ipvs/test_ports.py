"""Service ports and their siblings; hidden ports."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.ipvs import ports as ports_module
from svcproxy.backends.ipvs.layout import hidden_port, ports_taken
from svcproxy.backends.ipvs.ports import Ports
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict

ENDPOINTS = (Endpoint("10.244.0.1", 8080),)


def port(number: int) -> ServicePort:
    """A port that needs a hidden one for the other list."""
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
def test_hidden_ports_differ_and_keep_clear(numbers: set[int], data: st.DataObject) -> None:
    near = {(n - 1 + 32768) % 65535 + 1 for n in numbers if data.draw(st.booleans())}
    taken = numbers | near
    hidden = [hidden_port(number, taken) for number in sorted(taken)]
    for number, found in zip(sorted(taken), hidden, strict=True):
        assert found not in taken
        others = {(n - 1 + 32768) % 65535 + 1 for n in taken if n != number}
        assert found not in others


def test_a_service_with_many_ports_costs_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one with 2,000 would hold up the changes of all others for half a minute."""
    looked_at = 0

    def counted(ports: Iterator[ServicePort]) -> dict[Protocol, set[int]]:
        nonlocal looked_at
        found = list(ports)
        looked_at += len(found)
        return ports_taken(iter(found))

    monkeypatch.setattr(ports_module, "ports_taken", counted)
    settings = IpvsSettings(family=IPFamily.IPV4)
    held = Ports()
    many = [port(number) for number in range(1, 2001)]
    for each in many:
        held.put(each.name, each)
    servers = {key for each in many for key in held.layout(each.name, settings).servers}
    assert len(servers) == 2 * len(many)
    assert looked_at == len(many)
    held.put(many[0].name, None)
    held.layout(many[1].name, settings)
    assert looked_at == 2 * len(many) - 1, "what was remembered is not true any more"
