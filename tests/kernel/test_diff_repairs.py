"""``svcproxy diff`` names the program whose change the daemon has repaired."""

import json
import subprocess
import sys
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from svcproxy.commands.core.exit_codes import ExitCode
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import Offer, Stage, all_at

pytestmark = pytest.mark.kernel

VARIANTS = ("nftables", "nft")
"""Those in which the kernel reports changes."""


def run(stage: Stage, *arguments: str) -> CompletedProcess[str]:
    socket = f"--socket={stage.daemon.admin_socket}"
    command = [sys.executable, "-m", "svcproxy", "diff", *arguments, socket]
    return stage.node.netns.run(*command, check=False, timeout=30.0 * PATIENCE)


def document(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(stage, "-o", "json").stdout)
    return found


@pytest.fixture
def offer(stage: Stage) -> Iterator[Offer]:
    made = stage.offer(4, all_at([stage.here[0], stage.there[0]], 4), name="web")
    yield made
    made.remove()


def damage(stage: Stage, vip: str) -> str:
    """Remove a Service port's objects; return the name of the program that does it."""
    run_program = stage.node.netns.run
    if stage.variant == "nftables":
        run_program("nft", f"delete element ip svcproxy cluster-ips {{ {vip} . tcp . 80 }}")
        return "nft"
    run_program("iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES")
    return "iptables-nft"


def test_a_repair_names_the_program(stage: Stage, offer: Offer) -> None:
    before = document(stage)["repairsTotal"]
    program = damage(stage, offer.vip)
    eventually(lambda: document(stage)["repairsTotal"] > before)
    found = document(stage)
    repair = found["repairs"][-1]
    assert not any(about["differences"] for about in found["families"])
    assert (repair["process"], repair["family"]) == (program[:15], "IPv4")
    assert repair["pid"] > 0
    assert repair["reported"]
    assert repair["seconds"] > 0
    done = run(stage, "-n", "1")
    assert done.returncode == ExitCode.OK, done
    assert f"after a change by {program} (pid {repair['pid']})" in done.stdout.splitlines()[-1]


def test_watching_prints_a_repair_when_it_is_done(stage: Stage, offer: Offer) -> None:
    """Long before the next comparison."""
    command = [sys.executable, "-m", "svcproxy", "diff", "--watch", "--interval", "3600"]
    command += ["-o", "json", f"--socket={stage.daemon.admin_socket}"]
    process = stage.node.netns.call(
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    )
    assert process.stdout is not None
    try:
        total = json.loads(process.stdout.readline())["repairsTotal"]
        program = damage(stage, offer.vip)
        found = json.loads(process.stdout.readline())
        assert found["repairsTotal"] > total
        assert {repair["process"] for repair in found["repairs"]} == {program}
    finally:
        process.kill()
        process.communicate()
