"""The hooks that run after a sync."""

from typing import cast

import pytest

from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe.service_health import ServiceHealthServers
from svcproxy.state.desired import Changes
from svcproxy.sync.after_sync import SyncResult
from svcproxy.sync.hooks import health_checks

WEB = ServicePortName("shop", "web", "http", Protocol.TCP)
API = ServicePortName("shop", "api", "http", Protocol.TCP)


class Servers:
    """Records what the hook passes on."""

    def __init__(self) -> None:
        self.addresses: list[tuple[str, ...]] = []
        self.applied: list[dict[ServicePortName, ServicePort | None]] = []

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        self.addresses.append(addresses)

    def apply(self, ports: dict[ServicePortName, ServicePort | None]) -> None:
        self.applied.append(dict(ports))


def result(name: ServicePortName, *, first: bool = False) -> SyncResult:
    return SyncResult(Changes({name: None}), {}, None, first)


def test_changes_survive_a_failure_to_read_the_addresses() -> None:
    servers, failures = Servers(), [OSError("out of descriptors")]

    def addresses(_node: Node | None) -> tuple[str, ...]:
        if failures:
            raise failures.pop()
        return ("192.0.2.1",)

    hook = health_checks(cast("ServiceHealthServers", servers), addresses)
    with pytest.raises(OSError, match="descriptors"):
        hook(result(WEB, first=True))
    assert servers.applied == []
    hook(result(API))
    hook(result(API))
    assert servers.addresses == [("192.0.2.1",)]
    assert servers.applied == [{WEB: None, API: None}, {API: None}]
