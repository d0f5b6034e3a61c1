"""svcproxy's permissions in the cluster and on the node: exactly those that it needs."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import manifests as m
from testbed import netns
from testbed.apiserver.server import FakeApiServer
from testbed.netns import NetNS
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

DEPLOY = Path(__file__).parents[2] / "deploy"
SVCPROXY = (sys.executable, "-m", "svcproxy", "--svcproxy-admin-socket=")
Asked = set[tuple[str, str, str]]


@pytest.fixture
def space() -> Iterator[NetNS]:
    made = NetNS(f"svp-rights-{id(object())}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], netns=made.name)
    yield made
    netns.remove([made.name])


@contextmanager
def running(space: NetNS, log: Path, *flags: str, before: Sequence[str] = ()) -> Iterator[None]:
    with log.open("w+b") as file:
        command = [*before, *SVCPROXY, "--hostname-override=node-1", *flags]
        process = space.popen(command, output=file.fileno())
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(20)


def with_only(capabilities: Sequence[str]) -> list[str]:
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    return ["setpriv", "--no-new-privs", f"--bounding-set={kept}", f"--inh-caps={kept}"]


# --- The role ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["daemonset.yaml", "base/svcproxy.yaml"])
def test_the_role_grants_exactly_what_is_asked_for(file: str, asked: Asked) -> None:
    assert asked == granted(DEPLOY / file)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Return all requests of the daemon to API servers, old and new, by group, resource and verb.

    It runs in nftables mode, which also watches ServiceCIDRs, and has a conflict to report.
    """
    space = NetNS("svp-role")
    netns.ip_batch([f"netns add {space.name}"])
    netns.ip_batch(["link set lo up"], netns=space.name)
    log = tmp_path_factory.mktemp("role") / "log"
    found: Asked = set()
    try:
        for watch_list in (True, False):
            server = FakeApiServer()
            server.behaviour.watch_list = watch_list
            space.call(server.start)
            ports = [m.port(80, name="http", target=8080)]
            for name, address in (("one", "10.96.0.1"), ("two", "10.96.0.2")):
                server.put(m.service(name, [address], ports, externalIPs=["192.0.2.1"]))
            server.put(m.node("node-1", addresses=["10.0.0.1"]))
            server.put(m.service_cidr("kubernetes", ["10.96.0.0/16"]))
            with running(space, log, "--proxy-mode=nftables", f"--master={server.url}"):
                eventually(
                    lambda server=server: (  # type: ignore[misc]
                        reported(server) and len(watched(server)) == 4
                    ),
                    "Events and watches",
                    timeout=20,
                )
            found |= {request_of(r.path, r.verb) for r in server.received}
            server.stop()
    finally:
        netns.remove([space.name])
    return found


def reported(server: FakeApiServer) -> bool:
    """Return whether an Event was created, and the Service that it concerns was read."""
    paths = {(r.path, r.verb) for r in server.received}
    return {
        ("/api/v1/namespaces/default/services", "list"),
        ("/apis/events.k8s.io/v1/namespaces/default/events", "create"),
    } <= paths


def watched(server: FakeApiServer) -> set[str]:
    return {r.path for r in server.received if r.verb == "watch"}


def request_of(path: str, verb: str) -> tuple[str, str, str]:
    """Return group, resource and verb of a request, as in RBAC rules."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    assert len(rest) == 1, f"{path} names a single object"
    return group, rest[0], verb


def granted(file: Path) -> Asked:
    documents = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    (role,) = (document for document in documents if document["kind"] == "ClusterRole")
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


# --- Capabilities ------------------------------------------------------------------------------


def capabilities(file: str) -> list[str]:
    documents = yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8"))
    (found,) = (document for document in documents if document["kind"] == "DaemonSet")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    security: dict[str, Any] = container["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    added: list[str] = security["capabilities"]["add"]
    return added


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("overlays/nftables/capabilities.yaml", ["--proxy-mode=nftables"]),
        ("base/svcproxy.yaml", ["--svcproxy-iptables-variant=nft"]),
        ("base/svcproxy.yaml", ["--svcproxy-iptables-variant=legacy"]),
        ("overlays/kubeadm/daemonset.yaml", ["--svcproxy-iptables-variant=legacy"]),
    ],
)
def test_the_capabilities_that_are_granted_are_enough(
    space: NetNS, tmp_path: Path, file: str, flags: list[str]
) -> None:
    folder = m.ManifestFolder(tmp_path / "manifests")
    folder.put(m.service("web", ["10.96.0.1", "fd00::1"], [m.port(80, name="http")]))
    log = tmp_path / "log"
    before = with_only(capabilities(file))
    with running(space, log, f"--manifests={folder.path}", *flags, before=before):
        for family in ("IPv4", "IPv6"):
            done = f"sync.done family={family}"
            eventually(lambda done=done: done in log.read_text(), done, timeout=20)  # type: ignore[misc]
    assert "sync.failed" not in log.read_text()


def test_nftables_mode_is_granted_no_more_than_it_needs(space: NetNS, tmp_path: Path) -> None:
    assert capabilities("overlays/nftables/capabilities.yaml") == ["NET_ADMIN"]
    line = complaint(space, tmp_path, "--proxy-mode=nftables", before=with_only([]))
    assert "CAP_NET_ADMIN" in line
    assert "CAP_NET_RAW" not in line


@pytest.mark.parametrize("kept", [["NET_ADMIN"], ["NET_RAW"]])
def test_legacy_iptables_needs_both(space: NetNS, tmp_path: Path, kept: list[str]) -> None:
    assert set(capabilities("base/svcproxy.yaml")) == {"NET_ADMIN", "NET_RAW"}
    flag = "--svcproxy-iptables-variant=legacy"
    line = complaint(space, tmp_path, flag, before=with_only(kept))
    assert "CAP_NET_ADMIN and CAP_NET_RAW" in line


def complaint(space: NetNS, folder: Path, *flags: str, before: Sequence[str]) -> str:
    command = (*before, *SVCPROXY, f"--manifests={folder}", *flags)
    done = space.run(*command, check=False, timeout=20)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]
