"""Kernel parameters in a network namespace, which allows only some of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.netns import NetNS

pytestmark = pytest.mark.kernel

_HERE = Path("/proc/sys/net/netfilter")


def value(space: NetNS, name: str) -> int:
    return int(space.run("cat", f"/proc/sys/net/netfilter/nf_conntrack_{name}").stdout)


def init_only(space: NetNS, *flags: str) -> subprocess.CompletedProcess[str]:
    program = (sys.executable, "-m", "svcproxy", "--init-only")
    return space.run(*program, "--oom-score-adj=0", *flags, check=False)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.behaviour("The kernel: Node parameters")
def test_init_only_sets_up_and_ends(space: NetNS, mode: str) -> None:
    outside = {name.name: name.read_text() for name in _HERE.glob("nf_conntrack_*timeout*")}
    limit = value(space, "max")
    done = init_only(
        space,
        f"--proxy-mode={mode}",
        "--nodeport-addresses=0.0.0.0/0",  # otherwise nftables mode serves no node port on 127.0.0.1
        "--conntrack-tcp-timeout-established=1h",
        "--conntrack-tcp-timeout-close-wait=10m",
        "--conntrack-tcp-be-liberal",
        "--conntrack-udp-timeout=20s",
        "--conntrack-udp-timeout-stream=100s",
        f"--conntrack-min={limit + 1}",
        "--conntrack-max-per-core=1",
    )
    assert done.returncode == 0, done.stderr
    assert value(space, "tcp_timeout_established") == 3600
    assert value(space, "tcp_timeout_close_wait") == 600
    assert value(space, "tcp_be_liberal") == 1
    assert value(space, "udp_timeout") == 20
    assert value(space, "udp_timeout_stream") == 100
    assert space.run("cat", "/proc/sys/net/ipv4/conf/all/route_localnet").stdout == "1\n"
    # The limit can only be set in the initial namespace: a warning, where kube-proxy exits.
    (warning,) = [line for line in done.stderr.splitlines() if "sysctl.not_set" in line]
    assert "sysctl=net.netfilter.nf_conntrack_max" in warning
    assert f"wanted={limit + 1}" in warning
    assert "remedy=" in warning
    assert value(space, "max") == limit
    rules = space.run("nft", "list", "ruleset").stdout
    assert "KUBE-SERVICES" not in rules
    assert "table ip svcproxy" not in rules
    assert outside == {n.name: n.read_text() for n in _HERE.glob("nf_conntrack_*timeout*")}


@pytest.mark.behaviour("The kernel: Node parameters")
def test_a_start_without_cap_sys_resource_succeeds(space: NetNS) -> None:
    """As in a container: the OOM score stays, with a warning."""
    command = ("setpriv", "--bounding-set=-sys_resource", sys.executable, "-m", "svcproxy")
    flags = ("--init-only", "--proxy-mode=nftables", "--oom-score-adj=-998")
    done = space.run(*command, *flags, "--conntrack-max-per-core=0", check=False)
    assert done.returncode == 0, done.stderr
    assert "oom_score.not_set wanted=-998" in done.stderr


def test_a_read_only_proc_sys_is_a_warning(space: NetNS) -> None:
    """As in an unprivileged container, where kube-proxy never starts."""
    script = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&"
        f" exec {sys.executable} -m svcproxy --init-only --proxy-mode=nftables --oom-score-adj=0"
        " --conntrack-max-per-core=0 --nodeport-addresses=0.0.0.0/0"
    )
    before = value(space, "tcp_timeout_close_wait")
    done = space.run("unshare", "--mount", "sh", "-c", script, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "sysctl.not_set" in line]
    names = ("tcp_timeout_established", "tcp_timeout_close_wait", "route_localnet")
    assert all(any(name in line for line in warnings) for name in names), done.stderr
    assert all("remedy=" in line for line in warnings)
    assert value(space, "tcp_timeout_close_wait") == before
