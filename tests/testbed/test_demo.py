"""The demo from start to end with the real daemon, as run by ``./dev demo``."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import ROOT, netns
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel


def start(folder: Path, root: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "testbed.demo"],
        cwd=root,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(demo: subprocess.Popen[str], folder: Path) -> str:
    with demo:
        output, _ = demo.communicate(timeout=60)
    assert not netns.existing(f"svp-{demo.pid}-")
    assert not list(folder.iterdir())
    return output


def test_all_steps_succeed(tmp_path: Path) -> None:
    demo = start(tmp_path)
    output = end(demo, tmp_path)
    assert demo.returncode == 0, output
    assert "[11/11]" in output
    assert "by iptables" in output
    assert "Everything works" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_cleans_up(tmp_path: Path, number: int) -> None:
    demo = start(tmp_path)
    eventually(lambda: netns.existing(f"svp-{demo.pid}-"), "the first namespace")
    demo.send_signal(number)
    output = end(demo, tmp_path)
    assert demo.returncode == 130, output
    assert "interrupted" in output


def test_a_step_with_unexpected_results_fails(tmp_path: Path) -> None:
    copy, temporary = tmp_path / "copy", tmp_path / "tmp"
    temporary.mkdir()
    for name in ("testbed", "examples"):
        shutil.copytree(ROOT / name, copy / name)
    service = copy / "examples/web-service.yaml"
    service.write_text(service.read_text().replace("nodePort: 30080", "nodePort: 30081"))
    demo = start(temporary, copy)
    output = end(demo, temporary)
    assert demo.returncode == 1, output
    assert "failed: TCP from client to 192.168.50.1:30080" in output
