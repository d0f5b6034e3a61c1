"""Health-check node ports of many Services, and the limit of open files."""

import sys

import pytest

from testbed import manifests as m
from testbed.manifests import Object
from testbed.waiting import eventually
from tests.kernel.conftest import Offer, Stage, StageWith, at, servers

pytestmark = pytest.mark.kernel

VARIANTS = ("legacy",)
NUMBER = 1100
FIRST = 31_000


def _stage(stage_with: StageWith, soft: int, hard: int) -> Stage:
    program = ("prlimit", f"--nofile={soft}:{hard}", sys.executable, "-m", "svcproxy")
    return stage_with(program)


def _many(stage: Stage) -> list[Offer]:
    """Offer Services with health-check node ports, with an endpoint on the node each."""
    with stage.at_once():
        return [
            stage.offer(
                4,
                [at(stage.here[0], 4)],
                ports=[m.port(80, name="http", target=8080)],
                name=f"many-{number}",
                vip=f"10.96.{100 + number // 250}.{1 + number % 250}",
                type="LoadBalancer",
                allocateLoadBalancerNodePorts=False,
                externalTrafficPolicy="Local",
                healthCheckNodePort=FIRST + number,
            )
            for number in range(NUMBER)
        ]


def _open(stage: Stage) -> list[int]:
    """Return the health-check node ports that listen."""
    shown = stage.node.netns.run("ss", "-Hltn").stdout
    ports = {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()}
    return sorted(ports & set(range(FIRST, FIRST + NUMBER)))


def _all_open(stage: Stage) -> bool:
    opened = _open(stage)
    missing = sorted(set(range(FIRST, FIRST + NUMBER)) - set(opened))
    log = stage.daemon.logs()
    failures = [line for line in log if "health_check" in line] or log
    assert not missing, f"{len(missing)} closed ports, {missing[:5]} among them: {failures[-5:]}"
    return True


def _works(stage: Stage) -> None:
    """Assert that pages are served, and that a change still reaches the kernel."""
    assert stage.daemon.healthz()[0] == 200
    assert stage.daemon.healthz("/livez")[0] == 200
    stage.daemon.metrics()
    offer = stage.offer(4, [at(stage.here[0], 4)], name="another", vip="10.96.2.1")
    assert servers(stage.client, "tcp", offer.vip, 80, n=3) == {"pod1a"}
    offer.remove()


def _events(stage: Stage) -> list[str]:
    return [line for line in stage.daemon.logs() if "FailedToStartServiceHealthcheck" in line]


def _refused(stage: Stage) -> float:
    metrics = stage.daemon.metrics()
    return metrics.value("svcproxy_refused_inputs_total", input="http", limit="descriptors")


@pytest.mark.behaviour(
    "Load balancers and external IPs: `healthCheckNodePort` and file descriptors",
)
def test_the_soft_limit_is_no_limit(stage_with: StageWith) -> None:
    stage = _stage(stage_with, 1024, 8192)
    _many(stage)
    eventually(lambda: _all_open(stage), "all ports", timeout=30)
    _works(stage)
    for port in (FIRST, FIRST + NUMBER - 1):
        assert stage.client.traffic.fetch(port, address=stage.node.ip(4))[0] == 200
    assert _events(stage) == []


@pytest.mark.behaviour(
    "Load balancers and external IPs: `healthCheckNodePort` and file descriptors",
)
def test_ports_beyond_the_hard_limit_leave_the_rest_alone(stage_with: StageWith) -> None:
    stage = _stage(stage_with, 256, 256)
    offers = _many(stage)
    eventually(
        lambda: len(_open(stage)) + _refused(stage) == NUMBER, "an end of opening", timeout=30
    )
    opened = _open(stage)
    assert 0 < len(opened) < 256 - 64
    _works(stage)
    line = stage.daemon.wait_log("health_check.failed")
    assert "raise RLIMIT_NOFILE of svcproxy, which is 256" in line
    assert "default/many-" in line
    assert "no file descriptor is left" in _events(stage)[0]
    # Others are opened as soon as descriptors are free.
    kept: list[Object] = [offer.service for offer in offers[-20:]]
    assert not {service["spec"]["healthCheckNodePort"] for service in kept} & set(opened)
    with stage.at_once():
        for offer in offers[:-20]:
            offer.remove()
    eventually(lambda: _open(stage) == [FIRST + NUMBER - 20 + n for n in range(20)], "the others")
    _works(stage)
