"""Virtual servers are removed if the interface of IPVS mode exists, and only then."""

import sys
from pathlib import Path

import pytest

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs import cleanup
from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE
from svcproxy.backends.mode_spec import ActiveMode
from svcproxy.cleanup.sweep import sweep_family, sweep_shared
from svcproxy.config import ProxyMode
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS

SERVERS = ("10.96.0.1:80", "10.96.0.2:80", "[fd00:10:96::1]:80")


@pytest.fixture
def served(namespace: NetNS) -> NetNS:
    """Virtual servers of both families, with a real server each."""
    for server in SERVERS:
        target = "[fd00::2]:8080" if "[" in server else "10.0.0.2:8080"
        namespace.run("ipvsadm", "-A", "-t", server, "-s", "rr")
        namespace.run("ipvsadm", "-a", "-t", server, "-r", target, "-m")
    return namespace


def servers(namespace: NetNS) -> list[str]:
    lines = namespace.run("ipvsadm", "-Sn").stdout.splitlines()
    return sorted(line.split()[2] for line in lines if line.startswith("-A"))


def make_interface(namespace: NetNS) -> None:
    namespace.run("ip", "link", "add", DUMMY_INTERFACE, "type", "dummy")
    namespace.run("ip", "addr", "add", "10.96.0.1/32", "dev", DUMMY_INTERFACE)


def test_virtual_servers_are_removed_with_the_interface(served: NetNS) -> None:
    make_interface(served)
    done = served.call(lambda: cleanup.remove_virtual_servers((), now=False))
    assert done == {"virtual_server_deleted": len(SERVERS), "link_deleted": 1}
    assert servers(served) == []
    assert served.run("ip", "link", "show", DUMMY_INTERFACE, check=False).returncode
    assert served.call(lambda: cleanup.remove_virtual_servers((), now=True)) == {}, "once more"


def test_virtual_servers_in_ranges_to_keep_stay(served: NetNS) -> None:
    make_interface(served)
    served.call(
        lambda: cleanup.remove_virtual_servers(("10.96.0.2/32", "fd00:10:96::/64"), now=True)
    )
    assert servers(served) == sorted(SERVERS[1:])


def test_without_the_interface_no_virtual_server_is_touched(served: NetNS) -> None:
    """They belong to another program, such as keepalived."""
    assert served.call(lambda: cleanup.remove_virtual_servers((), now=True)) == {}
    assert servers(served) == sorted(SERVERS)


def test_connections_keep_it_all(
    served: NetNS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_interface(served)
    listing = tmp_path / "ip_vs_conn"
    head = "Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires PEName PEData\n"
    line = "TCP 0A000009 C350 0A600001 0050 0A000002 1F90 {} 899\n"
    monkeypatch.setattr(cleanup, "_CONNECTIONS", listing)
    listing.write_text(head + line.format("ESTABLISHED"))
    with pytest.raises(BackendError, match="connections"):
        served.call(lambda: cleanup.remove_virtual_servers((), now=False))
    assert servers(served) == sorted(SERVERS)
    over = ("TIME_WAIT", "SYN_SENT")
    listing.write_text(head + "".join(map(line.format, over)))
    assert served.call(lambda: cleanup.remove_virtual_servers((), now=False))["link_deleted"] == 1


def test_cleanup_removes_it_and_the_rules(served: NetNS) -> None:
    """It succeeds on this kernel, which has no nf_tables for IP."""
    make_interface(served)
    rules = "*nat\n:KUBE-IPVS-NODE-PORTS - [0:0]\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"
    served.run("iptables-legacy-restore", "--noflush", stdin=rules)
    served.run("ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port")
    served.run("ipset", "create", "OTHERS", "hash:ip")
    done = served.run(sys.executable, "-m", "svcproxy", "--cleanup", check=False)
    assert done.returncode == 0, done.stderr
    assert servers(served) == []
    assert served.run("ipset", "list", "-n").stdout.split() == ["OTHERS"]
    assert "KUBE" not in served.run("iptables-legacy-save").stdout


def test_the_access_filter_stays_as_long_as_the_addresses(
    served: NetNS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_interface(served)
    served.run("ipset", "create", "KUBE-IPVS-IPS", "hash:ip")
    match = "-m set --match-set KUBE-IPVS-IPS dst -j REJECT"
    rules = (
        "*filter\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-FORWARD - [0:0]\n"
        '-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER\n'
        f"-A KUBE-IPVS-FILTER {match}\nCOMMIT\n"
    )
    served.run("iptables-legacy-restore", "--noflush", stdin=rules)
    listing = tmp_path / "ip_vs_conn"
    listing.write_text("head\nTCP 0A000009 C350 0A600001 0050 0A000002 1F90 ESTABLISHED 899\n")
    monkeypatch.setattr(cleanup, "_CONNECTIONS", listing)
    active = ActiveMode(ProxyMode.NFTABLES)

    def swept() -> list[str]:
        parts = [served.call(lambda: sweep_family(active, IPFamily.IPV4))]
        parts.append(served.call(lambda: sweep_shared(active)))
        return [problem for part in parts for problem in part.problems]

    assert all("connections still go through IPVS" in problem for problem in swept())
    saved = served.run("iptables-legacy-save", "-t", "filter").stdout
    assert "KUBE-FORWARD" not in saved
    assert "-j KUBE-IPVS-FILTER" in saved
    assert "--match-set KUBE-IPVS-IPS" in saved
    listing.write_text("head\n")
    assert swept() == []
    assert "KUBE" not in served.run("iptables-legacy-save").stdout
    assert served.run("ipset", "list", "-n").stdout == ""
    assert servers(served) == []
