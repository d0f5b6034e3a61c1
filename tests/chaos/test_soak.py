"""A soak of a minute: it passes, and removes everything at its end."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import ROOT, netns
from testbed.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "chaos.soak", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.quick
def test_a_minute_of_soak_ends_well(tmp_path: Path) -> None:
    figures, temporary = tmp_path / "figures.json", tmp_path / "temporary"
    temporary.mkdir()
    chosen = ("--minutes=0.5", "--services=100", "--gap=1", f"--json={figures}")
    with start(temporary, *chosen) as soak:
        output, _ = soak.communicate()
    assert soak.returncode == 0, output
    seen = json.loads(figures.read_text(encoding="utf-8"))
    assert seen["changes"] > 100
    assert seen["connections"] > 100
    assert len(seen["faults"]) > 3
    assert all(check["holds"] for check in seen["checks"])
    assert not netns.existing(f"svp-{soak.pid}-")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("moment", ["start", "namespaces", "daemon", "traffic"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_interrupted_at_any_time(
    tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    def came() -> bool:
        if moment == "start":
            return any(tmp_path.iterdir())
        if moment == "namespaces":
            return bool(netns.existing(f"svp-{soak.pid}-"))
        logs = [log.read_bytes() for log in tmp_path.glob("*/*.log")]
        return any(b"sync.done" in log for log in logs) if moment == "traffic" else bool(logs)

    with start(tmp_path, "--minutes=1", "--services=20") as soak:
        eventually(came, moment, timeout=60)
        soak.send_signal(number)
        output, _ = soak.communicate(timeout=60)
    assert soak.returncode == (130 if number is signal.SIGTERM else -number), output
    eventually(lambda: not processes(tmp_path), "the end of all processes", timeout=30)
    assert not netns.existing(f"svp-{soak.pid}-")
    assert not list(tmp_path.iterdir())


def processes(folder: Path) -> list[str]:
    """Return the command lines of processes with temporary files in a folder: the soak's children."""
    wanted, found = f"TMPDIR={folder}".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text(encoding="utf-8", errors="replace"))
    return found
