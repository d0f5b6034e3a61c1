"""The recording backend keeps the finished Service ports, in both ways to sync."""

from structlog.testing import capture_logs

from svcproxy.backends.base import Desired
from svcproxy.backends.recording.backend import RecordingBackend
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.desired import Changes

SETTINGS = Settings(IPFamily.IPV4)


def port(name: str, *addresses: str) -> ServicePort:
    frontend = Frontend(
        FrontendKind.CLUSTER_IP, "10.96.0.10", 80, local=False, verdict=Verdict.FORWARD
    )
    endpoints = tuple(Endpoint(address, 8080, is_local=False) for address in addresses)
    return ServicePort(
        ServicePortName("ns", name, "http", Protocol.TCP), (frontend,), endpoints, ()
    )


def resync(backend: RecordingBackend, *ports: ServicePort) -> dict[str, int]:
    desired = Desired({port.name: port for port in ports}, SETTINGS)
    return dict(backend.apply(backend.plan(desired, backend.read())).operations)


def change(backend: RecordingBackend, *ports: ServicePort) -> dict[str, int]:
    plan = backend.plan_changes(Changes({port.name: port for port in ports}), SETTINGS)
    assert plan is not None
    return dict(backend.apply(plan).operations)


def test_incremental_syncs_record_the_same_as_a_resync() -> None:
    backend = RecordingBackend(IPFamily.IPV4)
    assert resync(backend, port("a", "10.0.0.1"), port("b")) == {"service_port_added": 2}
    assert change(backend, port("a", "10.0.0.2"), port("c")) == {
        "service_port_changed": 1,
        "service_port_added": 1,
    }
    removed = backend.plan_changes(Changes({port("b").name: None}), SETTINGS)
    assert removed is not None
    assert backend.apply(removed).operations == {"service_port_removed": 1}
    assert set(backend.recorded) == {port("a").name, port("c").name}
    assert resync(backend, port("a", "10.0.0.2"), port("c")) == {}, "nothing differs"


def test_a_resync_removes_what_is_not_desired() -> None:
    backend = RecordingBackend(IPFamily.IPV4)
    resync(backend, port("a"), port("b"))
    assert resync(backend, port("b")) == {"service_port_removed": 1}
    assert list(backend.recorded) == [port("b").name]


def test_changes_need_a_resync_first_and_after_the_settings_changed() -> None:
    backend = RecordingBackend(IPFamily.IPV4)
    changed = Changes({port("a").name: port("a")})
    assert not backend.is_unchanged()
    assert backend.plan_changes(changed, SETTINGS) is None
    resync(backend)
    assert backend.is_unchanged()
    assert backend.plan_changes(changed, Settings(IPFamily.IPV4, masquerade_all=True)) is None


def test_each_operation_is_logged() -> None:
    backend = RecordingBackend(IPFamily.IPV4)
    with capture_logs() as logs:
        resync(backend, port("a"))
    (line,) = logs
    assert line["operation"] == "service_port_added"
    assert line["service_port"] == "ns/a:http"
