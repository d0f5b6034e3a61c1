"""A Service that the kernel refuses, with the whole daemon: all other Services are served."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from testbed import manifests as m
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import IPTABLES, Stage, StageWith, at, servers

pytestmark = pytest.mark.kernel

VARIANTS = IPTABLES

FAILURES = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total"


@pytest.fixture
def program(tmp_path: Path, variant: str) -> tuple[str, ...]:
    """The daemon, with iptables programs that refuse port 4444 unless a file ``allow`` exists."""
    for base in ("iptables", "ip6tables"):
        name = f"{base}-{variant}-restore"
        path = tmp_path / name
        path.write_text(f"""#!/bin/sh
text=$(mktemp)
trap 'rm "$text"' EXIT
cat > "$text"
line=$(grep -n -- ':4444$' "$text" | head -1 | cut -d: -f1)
if [ -n "$line" ] && [ ! -e {tmp_path}/allow ]; then
    sed '/^[*]nat/,$d' "$text" | {shutil.which(name)} "$@" || exit
    echo "Error occurred at line: $line" >&2
    exit 2
fi
{shutil.which(name)} "$@" < "$text"
""")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return ("env", f"PATH={tmp_path}:{os.environ['PATH']}", sys.executable, "-m", "svcproxy")


@pytest.mark.behaviour("The kernel: Refused Service port")
def test_others_are_served_while_one_is_refused(
    stage_with: StageWith, program: tuple[str, ...], tmp_path: Path, family: int
) -> None:
    stage = stage_with(program)
    endpoints = [at(stage.here[0], family)]
    first = stage.offer(family, endpoints)
    stage.offer(family, endpoints, ports=[m.port(80, name="http", target=4444)])
    # Each of these returns when the daemon has programmed all objects.
    second = stage.offer(family, endpoints)
    for offer in (first, second):
        assert servers(stage.here[1], "tcp", offer.vip, 80)
    assert stage.daemon.wait_log("service_port.refused")
    assert refused(stage) == 1
    assert stage.daemon.metrics().value(FAILURES) == 0
    (tmp_path / "allow").touch()
    eventually(lambda: not refused(stage), timeout=20 * PATIENCE)
    assert any(":4444" in rule for rule in stage.rules(family))


def refused(stage: Stage) -> float:
    return stage.daemon.metrics().value("svcproxy_refused_service_ports")
