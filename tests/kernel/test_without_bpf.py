"""Without the ``bpf`` match in the kernel or in iptables, each endpoint has a chain of its own."""

import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import (
    IPTABLES,
    Stage,
    StageWith,
    all_at,
    ask,
    assert_even,
)

pytestmark = pytest.mark.kernel

VARIANTS = IPTABLES


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The daemon's command line, with all iptables extensions except ``bpf``."""
    folders = [f for p in ("lib*/xtables", "lib*/*/xtables") for f in Path("/usr").glob(p)]
    links = tmp_path_factory.mktemp("xtables")
    for extension in (file for folder in folders for file in folder.glob("*.so")):
        link = links / extension.name
        if extension.name != "libxt_bpf.so" and not link.exists():
            link.symlink_to(extension)
    assert any(links.iterdir())
    return ("env", f"XTABLES_LIBDIR={links}", sys.executable, "-m", "svcproxy")


@pytest.fixture
def plain(stage_with: StageWith, program: tuple[str, ...]) -> Stage:
    stage = stage_with(program)
    assert not any("-m bpf" in rule for family in (4, 6) for rule in stage.rules(family))
    assert stage.daemon.wait_log("no_bpf_match")
    return stage


@pytest.mark.behaviour("The kernel: No `bpf` match")
def test_services_work_without_the_bpf_match(plain: Stage, family: int) -> None:
    pods = [*plain.here, plain.there[0]]
    offer = plain.offer(family, all_at(pods, family), type="NodePort")
    asking = plain.here[0]
    for proto, port in offer.ports:
        assert ask(asking, proto, offer.vip, port) == plain.kept(asking, pods, family)
        assert ask(plain.client, proto, offer.vip, port) == plain.masqueraded(pods, family)
        assert_even(plain.client.traffic.burst(proto, offer.vip, port, 300), among=3)
    for proto, port in offer.node_ports:
        seen = ask(asking, proto, plain.node.ip(family), port)
        assert seen == plain.masqueraded(pods, family)


@pytest.mark.behaviour("The kernel: No `bpf` match")
def test_affinity_works_without_the_bpf_match(plain: Stage, family: int) -> None:
    offer = plain.offer(family, all_at(plain.here, family), sessionAffinity="ClientIP")
    for host in (*plain.here, plain.client):
        for proto, port in offer.ports:
            assert len(ask(host, proto, offer.vip, port)) == 1


@pytest.mark.behaviour("The kernel: No `bpf` match")
def test_a_pod_reaches_itself_without_the_bpf_match(plain: Stage, family: int) -> None:
    pod = plain.here[0]
    offer = plain.offer(
        family, all_at([pod], family), externalTrafficPolicy="Local", type="NodePort"
    )
    for proto, port in offer.ports:
        assert ask(pod, proto, offer.vip, port, n=5) == plain.kept(pod, [pod], family)
    for proto, port in offer.node_ports:
        seen = ask(pod, proto, plain.node.ip(family), port, n=5)
        assert seen == plain.kept(pod, [pod], family)
