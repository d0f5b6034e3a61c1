"""``svcproxy diff`` against a running daemon finds no difference, in any mode."""

import sys

import pytest

from svcproxy.commands.core.exit_codes import ExitCode
from testbed.waiting import PATIENCE
from tests.kernel.conftest import Stage, all_at

pytestmark = pytest.mark.kernel


def test_a_synced_kernel_agrees(stage: Stage) -> None:
    sticky = stage.offer(4, all_at(stage.here, 4), sessionAffinity="ClientIP", type="NodePort")
    local = stage.offer(6, all_at(stage.here, 6), type="NodePort", externalTrafficPolicy="Local")
    idle = stage.offer(4)
    socket = f"--socket={stage.daemon.admin_socket}"
    command = [sys.executable, "-m", "svcproxy", "diff", socket]
    done = stage.node.netns.run(*command, check=False, timeout=30.0 * PATIENCE)
    for each in (sticky, local, idle):
        each.remove()
    assert done.returncode == ExitCode.OK, done
    assert "IPv4, IPv6    up to date, kernel agrees" in done.stdout.splitlines()[0]
