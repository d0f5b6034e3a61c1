"""Planning of the IPVS backend: it reads nothing, logs nothing, and its plans carry all decisions."""

import errno

import pytest
from structlog.testing import capture_logs

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.backend import IpvsBackend, IpvsOptions
from svcproxy.backends.ipvs.core.difference import Observed, Plan
from svcproxy.backends.ipvs.core.refusals import rescheduling
from svcproxy.backends.ipvs.core.settings import SCHEDULER, Scheduling
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServer, VirtualServerKey
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    Failure,
    ServerOperation,
)
from svcproxy.state.desired import Changes

NAME = ServicePortName("ns", "web", "http", Protocol.TCP)
FRONTEND = Frontend(FrontendKind.CLUSTER_IP, "10.96.0.1", 80, local=False, verdict=Verdict.FORWARD)
KEY = VirtualServerKey(Protocol.TCP, "10.96.0.1", 80)
ONE, TWO = RealServerKey("10.244.0.1", 8080), RealServerKey("10.244.0.2", 8080)
SETTINGS = Settings(IPFamily.IPV4)
NOTHING = Observed({}, {}, {}, {}, frozenset())


def port(*endpoints: RealServerKey, scheduler: str = "") -> ServicePort:
    annotations = ((SCHEDULER, scheduler),) if scheduler else ()
    found = tuple(Endpoint(*endpoint) for endpoint in endpoints)
    return ServicePort(NAME, (FRONTEND,), found, (), annotations=annotations)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> IpvsBackend:
    """A backend whose sockets cannot be opened and whose programs cannot run."""

    def forbidden(*_: object) -> None:
        raise AssertionError("planning does I/O")

    monkeypatch.setattr("svcproxy.backends.ipvs.backend.IpvsKernel", forbidden)
    monkeypatch.setattr("svcproxy.sysctl.conntrack_is_liberal", forbidden)
    monkeypatch.setattr("subprocess.Popen", forbidden)
    return IpvsBackend(Iptables(Variant.LEGACY, IPFamily.IPV4), SETTINGS, IpvsOptions())


def test_planning_reads_nothing_and_logs_nothing(backend: IpvsBackend) -> None:
    with capture_logs() as logs:
        plan = backend.plan(Desired({NAME: port(ONE)}, SETTINGS), NOTHING)
        assert plan.serve == [
            AddVirtualServer(KEY, VirtualServer("rr")),
            AddRealServer(KEY, ONE, 1),
        ]
        changed = backend.plan_changes(Changes({NAME: port(ONE, TWO, scheduler="mine")}), SETTINGS)
    assert changed is not None
    assert changed.serve == [AddRealServer(KEY, TWO, 1)]
    assert not logs


def test_a_plan_names_unusable_annotations(backend: IpvsBackend) -> None:
    plan = backend.plan(Desired({NAME: port(ONE, scheduler="mine")}, SETTINGS), NOTHING)
    assert "'mine' is no scheduler" in plan.annotation_problems[NamespacedName("ns", "web")]
    plan_after = backend.plan_changes(Changes({NAME: port(ONE, scheduler="lc")}), SETTINGS)
    assert plan_after is not None
    assert not plan_after.annotation_problems


def test_other_settings_need_a_resync(backend: IpvsBackend) -> None:
    backend.plan(Desired({NAME: port(ONE)}, SETTINGS), NOTHING)
    other = Settings(IPFamily.IPV4, masquerade_all=True)
    assert backend.plan_changes(Changes({NAME: port(TWO)}), other) is None


def test_an_empty_plan_has_no_steps() -> None:
    assert not Plan()


def test_servers_without_their_scheduler_are_repeated_with_the_fallback() -> None:
    other = VirtualServerKey(Protocol.TCP, "10.96.0.2", 80)
    bad = AddVirtualServer(KEY, VirtualServer("mh", 0x1 | 0x8 | 0x10, 60))
    operations: list[ServerOperation] = [
        bad,
        AddRealServer(KEY, ONE, 1),
        AddVirtualServer(other, VirtualServer("rr")),
        AddRealServer(other, TWO, 1),
    ]
    unrelated = Failure(operations[3], errno.EINVAL, "")
    failures = [
        Failure(bad, errno.ENOENT, ""),
        Failure(operations[1], errno.ESRCH, ""),
        unrelated,
    ]
    again = rescheduling(operations, failures, Scheduling("sh", 0x8))
    assert again.operations == [
        AddVirtualServer(KEY, VirtualServer("sh", 0x1 | 0x8, 60)),
        operations[1],
    ]
    assert again.replaced == [bad]
    assert again.failures == [unrelated]
    assert rescheduling(operations, [unrelated], Scheduling()) == ([], [], [unrelated])
