"""Fatal errors at the start: one line with the remedy, exit code 1, no traceback."""

import http.client
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from testbed import netns
from testbed.netns import NetNS
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

SVCPROXY = (sys.executable, "-m", "svcproxy", "--svcproxy-admin-socket=")


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


@contextmanager
def held(space: NetNS, port: int) -> Iterator[None]:
    """Have another program listen on a port of the node."""
    program = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {port}));"
        " print('listening', flush=True); time.sleep(60)"
    )
    holder = space.popen([sys.executable, "-c", program], output=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"listening\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    ("flag", "port"), [("--metrics-bind-address", 10249), ("--healthz-bind-address", 10256)]
)
def test_a_port_in_use_with_bind_address_hard_fail(
    space: NetNS, tmp_path: Path, flag: str, port: int
) -> None:
    with held(space, port):
        line = complaint(space, f"--manifests={tmp_path}", "--bind-address-hard-fail")
    assert f":{port}" in line
    assert flag in line


def test_a_port_in_use_is_taken_over_when_it_is_free(space: NetNS, tmp_path: Path) -> None:
    """kube-proxy holds the ports until it has stopped; rules are programmed before that."""
    flags = (f"--manifests={tmp_path}", "--hostname-override=n1")
    with (tmp_path.parent / "log").open("w+b") as log:
        with held(space, 10249), held(space, 10256):
            daemon = space.popen([*SVCPROXY, *flags], output=log.fileno())
            try:
                eventually(lambda: "KUBE-SERVICES" in rules(space), "rules", timeout=20)
            except BaseException:
                daemon.kill()
                raise
        try:
            eventually(lambda: status(space, 10256, "/healthz") == 200, "health", timeout=15)
            eventually(lambda: status(space, 10249, "/metrics") == 200, "metrics", timeout=15)
        finally:
            daemon.terminate()
            assert daemon.wait(10) == 0
        log.seek(0)
        lines = log.read().decode().splitlines()
    for port, flag in ((10249, "--metrics-bind-address"), (10256, "--healthz-bind-address")):
        (line,) = (one for one in lines if "http.not_serving" in one and f":{port}:" in one)
        assert "stop the other program" in line
        assert flag in line
        assert any("http.serving" in one and str(port) in one for one in lines)


def rules(space: NetNS) -> str:
    return space.run("iptables-save", "-t", "nat", check=False).stdout


def status(space: NetNS, port: int, path: str) -> int:
    def ask() -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
            client.request("GET", path)
            return client.getresponse().status

    try:
        return space.call(ask)
    except OSError:
        return 0


def test_nothing_is_programmed_when_the_start_fails(space: NetNS, tmp_path: Path) -> None:
    complaint(space, f"--manifests={tmp_path / 'missing'}")
    for program in ("iptables-nft-save", "ip6tables-nft-save"):
        assert "KUBE-" not in space.run(program).stdout


LOADED = """
import os, sys
from svcproxy.cli import load_daemon, parse
load_daemon()
import svcproxy.kube.api, svcproxy.kube.events
from svcproxy.modes import mode_spec
config = parse(sys.argv[1:], os.environ)
ready = mode_spec(config.proxy_mode).make(config)
if ready.watch:
    ready.watch(print)
print(*sys.modules)
"""
"""The imports of the daemon up to its first list."""
UNUSED = {
    "nftables": {"iptables", "ipvs", "xtables"},
    "nft": {"ipvs", "nftables"},
    "legacy": {"ipvs", "nftables"},
    "ipvs": {"iptables", "nftables"},
}
"""The packages in ``svcproxy/backends`` that each variant must not import."""
NEVER = {"svcproxy.cleanup.sweep", "kubernetes", "yaml", "requests", "rich", "pyroute2"}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.uml] * (name == "ipvs")) for name in UNUSED],
)
def test_modules_of_other_modes_are_not_loaded(space: NetNS, tmp_path: Path, variant: str) -> None:
    mode = variant if variant in {"nftables", "ipvs"} else "iptables"
    flags = [f"--proxy-mode={mode}", f"--manifests={tmp_path}"]
    if mode != "nftables":
        flags.append(f"--svcproxy-iptables-variant={'nft' if variant == 'nft' else 'legacy'}")
    done = space.run(sys.executable, "-c", LOADED, *flags, timeout=60)
    modules = set(done.stdout.splitlines()[-1].split())
    assert f"svcproxy.backends.{mode}.backend" in modules
    unused = NEVER | {f"svcproxy.backends.{name}" for name in UNUSED[variant]}
    assert not modules & unused
