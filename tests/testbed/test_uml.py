"""User Mode Linux as a test bed: returns a command's output, status and files, or an error."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import ROOT, uml
from testbed.machines import MachineError
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

_FOREVER = ["sh", "-c", "echo begun; sleep 1000"]

_IPVS = """
import sys
from pathlib import Path
from pyroute2 import IPVS, IPRoute
with IPVS() as ipvs, IPRoute() as links:
    links.link("add", ifname="kube-ipvs0", kind="dummy")
    print("links:", len(links.link_lookup(ifname="kube-ipvs0")))
    print("virtual servers:", len(list(ipvs.service("dump"))))
Path(sys.argv[1], "result").write_text("from the guest")
sys.exit(7)
"""


def test_status_output_and_files_come_out(tmp_path: Path) -> None:
    pieces: list[bytes] = []
    command = [sys.executable, "-c", _IPVS, str(tmp_path)]
    done = uml.run(command, folder=ROOT, timeout=60, results=tmp_path, echo=pieces.append)
    assert (done.status, done.output) == (7, "links: 1\nvirtual servers: 0\n")
    assert b"".join(pieces).decode() == done.output
    assert (tmp_path / "result").read_text() == "from the guest"
    assert done.kernel != Path("/proc/sys/kernel/osrelease").read_text().strip()


def test_nothing_else_of_the_host_can_be_changed(tmp_path: Path) -> None:
    done = uml.run(["touch", str(tmp_path / "new")], folder=Path("/"), timeout=60)
    assert done.status == 1
    assert "Read-only file system" in done.output
    assert not (tmp_path / "new").exists()


def _processes(mark: str) -> list[int]:
    """Return the processes whose command line contains ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
    return found


def test_a_command_without_an_end_is_an_error() -> None:
    with (
        uml.Guest(_FOREVER, folder=Path("/"), timeout=8) as guest,
        pytest.raises(MachineError, match="not done after 8 s:\nbegun\n"),
    ):
        guest.wait()
    eventually(lambda: not _processes(guest.files.name), timeout=5)


def test_a_guest_can_be_ended_at_any_time() -> None:
    with uml.Guest(_FOREVER, folder=Path("/"), timeout=60) as guest:
        eventually(lambda: guest.output == "begun\n", timeout=30)
        assert _processes(guest.files.name)
    eventually(lambda: not _processes(guest.files.name), timeout=5)
    assert not guest.files.exists()


def test_a_guest_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "testbed.uml", "--", *_FOREVER]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"begun\n"
        assert _processes(str(tmp_path))
        owner.kill()
    eventually(lambda: not _processes(str(tmp_path)), timeout=5)


def test_a_guest_that_dies_is_an_error() -> None:
    with pytest.raises(MachineError, match=r"did not end; the guest did, with status"):
        uml.run(["sh", "-c", "echo o >/proc/sysrq-trigger; sleep 10"], folder=Path("/"), timeout=60)


def test_a_missing_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineError, match=r"there is no linux.uml: ./dev setup installs"):
        uml.run(["true"], folder=Path("/"), timeout=1)


def test_the_command_line_passes_output_and_status_on() -> None:
    command = [sys.executable, "-m", "testbed.uml", "--", "sh", "-c", "pwd; exit 3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"{ROOT}\n"), done.stderr


def test_small_shared_memory_is_not_in_the_way() -> None:
    """As in a container with the default size of /dev/shm."""
    small = "mount -t tmpfs -o size=1m,noexec tmpfs /dev/shm"
    command = f"{small} && exec {sys.executable} -m testbed.uml -- echo here"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
