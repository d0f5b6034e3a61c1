"""What stops the daemon at the start: one clear line with the remedy, exit code 1, no traceback."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from testbed import netns
from testbed.netns import NetNS

pytestmark = pytest.mark.kernel

SVCPROXY = (sys.executable, "-m", "svcproxy")


@pytest.fixture
def space() -> Iterator[NetNS]:
    made = NetNS(f"svp-start-{id(object())}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], netns=made.name)
    yield made
    netns.remove([made.name])


def complaint(space: NetNS, *flags: str, before: Sequence[str] = ()) -> str:
    """Start the daemon, which must fail; return the last line of its output."""
    done = space.run(*before, *SVCPROXY, *flags, check=False, timeout=20)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("svcproxy: ")
    return last


def test_missing_kubeconfig(space: NetNS) -> None:
    line = complaint(space, "--kubeconfig=/nowhere/kubeconfig")
    assert "/nowhere/kubeconfig does not exist" in line
    assert "--kubeconfig" in line


def test_unreadable_kubeconfig(space: NetNS, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("{this is: [not YAML")
    assert "is not YAML" in complaint(space, f"--kubeconfig={path}")
    path.write_text("apiVersion: v1\nkind: Config\n")
    assert str(path) in complaint(space, f"--kubeconfig={path}")


def test_missing_manifest_folder(space: NetNS) -> None:
    assert "create it" in complaint(space, "--manifests=/nowhere/manifests")


@pytest.mark.parametrize("flags", [[], ["--svcproxy-iptables-variant=nft"]])
def test_missing_iptables(space: NetNS, tmp_path: Path, flags: list[str]) -> None:
    before = ("env", "PATH=/nowhere")
    line = complaint(space, f"--manifests={tmp_path}", *flags, before=before)
    assert "install the iptables package" in line


@pytest.mark.parametrize("variant", ["auto", "nft", "legacy"])
def test_missing_capabilities(space: NetNS, tmp_path: Path, variant: str) -> None:
    line = complaint(
        space,
        f"--manifests={tmp_path}",
        f"--svcproxy-iptables-variant={variant}",
        before=("setpriv", "--bounding-set=-net_admin,-net_raw"),
    )
    assert "CAP_NET_ADMIN and CAP_NET_RAW" in line


@pytest.mark.parametrize(
    ("flag", "port"), [("--metrics-bind-address", 10249), ("--healthz-bind-address", 10256)]
)
def test_a_port_in_use(space: NetNS, tmp_path: Path, flag: str, port: int) -> None:
    holder = space.popen(
        [
            sys.executable,
            "-c",
            (
                f"import socket, time; s = socket.create_server(('127.0.0.1', {port}));"
                " print('listening', flush=True); time.sleep(60)"
            ),
        ],
        output=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"listening\n"
        line = complaint(space, f"--manifests={tmp_path}")
        assert f":{port}" in line
        assert flag in line
    finally:
        holder.kill()
        holder.communicate()


def test_nothing_is_programmed_when_the_start_fails(space: NetNS, tmp_path: Path) -> None:
    complaint(space, f"--manifests={tmp_path / 'missing'}")
    for program in ("iptables-nft-save", "ip6tables-nft-save"):
        assert "KUBE-" not in space.run(program).stdout
