"""Without ipset in the kernel or in iptables, affinity uses xt_recent, as in kube-proxy."""

import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import IPTABLES, StageWith, all_at, ask

pytestmark = pytest.mark.kernel

VARIANTS = IPTABLES


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    """The daemon's command line, with all iptables extensions except ``set``."""
    folders = [f for p in ("lib*/xtables", "lib*/*/xtables") for f in Path("/usr").glob(p)]
    links = tmp_path / "xtables"
    links.mkdir()
    for extension in (file for folder in folders for file in folder.glob("*.so")):
        link = links / extension.name
        if extension.name.lower() != "libxt_set.so" and not link.exists():
            link.symlink_to(extension)
    assert any(links.iterdir())
    return ("env", f"XTABLES_LIBDIR={links}", sys.executable, "-m", "svcproxy")


@pytest.mark.behaviour("Session affinity: No `ipset`")
def test_affinity_works_without_ipset(
    stage_with: StageWith, program: tuple[str, ...], family: int
) -> None:
    stage = stage_with(program)
    offer = stage.offer(family, all_at(stage.here, family), sessionAffinity="ClientIP")
    assert any("-m recent --rcheck" in rule for rule in stage.rules(family))
    assert not any("--match-set" in rule for rule in stage.rules(family))
    assert stage.daemon.wait_log("iptables.no_ipset")
    for host in (*stage.here, stage.client):
        for proto, port in offer.ports:
            assert len(ask(host, proto, offer.vip, port)) == 1
