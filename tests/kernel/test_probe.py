"""``trace --live``: what a probe reports is what the kernel did, and nothing of it remains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.commands.live import probe
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.address_watcher import AddressWatcher
from svcproxy.probe import affinity
from svcproxy.probe.core.affinity import RecentAddress
from svcproxy.probe.core.entry import target
from svcproxy.probe.core.result import (
    Expected,
    LiveRequest,
    LiveResult,
    Outcome,
    SourceKind,
    Verdict,
)
from testbed import manifests as m
from testbed import netns
from testbed.netns import NetNS
from testbed.outcomes import Answer
from testbed.waiting import eventually
from tests.kernel.conftest import Stage, all_at, another_address, ask, at
from tests.kernel.probes import (
    clients,
    flows,
    live,
    of_service,
    request,
    snapshot,
    sources,
)

pytestmark = pytest.mark.kernel

SOURCES = ("node", "pod", "outside")
GONE = 10.0


def _traced(stage: Stage) -> bool:
    return stage.variant in {"nft", "nftables"}


def _assert_trace(stage: Stage, result: LiveResult, last: str) -> None:
    """Assert that the kernel's trace ends with a verdict, or that its absence has a reason."""
    if not _traced(stage):
        assert result.no_trace
        return
    assert not result.no_trace, result
    assert result.trace[-1].verdict.endswith(last), result.trace
    named = [line for line in result.trace if line.handle]
    assert named
    assert all(line.rule for line in named), result.trace


def _expected(stage: Stage, pods: list[str], *, masqueraded: bool | None = None) -> Expected:
    return Expected(Verdict.DELIVERED, frozenset(pods), masqueraded=masqueraded)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_delivered_probe(stage: Stage, family: int, source: str, proto: str) -> None:
    """Endpoint and source are those that real connections meet; a pod's source is kept."""
    pods = [stage.here[0]]
    offer = stage.offer(family, all_at(pods, family))
    port, backend = dict(offer.ports)[proto], 8080 if proto == "tcp" else 5353
    before = snapshot(stage)
    asked = request(
        stage,
        family,
        offer.vip,
        port,
        proto=proto,
        payload=b"ping\n",
        expected=_expected(
            stage, [target(pods[0].ip(family), backend)], masqueraded=source != "pod"
        ),
        **sources(stage, family)[source],
    )
    result = live(stage, asked)
    assert result.outcome is Outcome.ANSWERED, result
    assert result.detail == "SYN-ACK" if proto == "tcp" else "reply of" in result.detail
    assert result.endpoint == target(pods[0].ip(family), backend)
    assert result.milliseconds > 0
    assert result.agrees, result
    assert result.masqueraded is (source != "pod")
    if source == "node":
        ((_, seen),) = ask(stage.node, proto, offer.vip, port, n=1)
        assert result.seen_source.startswith(target(seen, 0).rpartition(":")[0] + ":")
    _assert_trace(stage, result, "accept")
    eventually(lambda: snapshot(stage) == before, "the former state", timeout=GONE)
    if source != "node":
        assert not flows(stage.node.netns, offer.vip)


def test_the_node_is_masqueraded_to_a_remote_endpoint(stage: Stage, family: int) -> None:
    """The endpoint sees the node's own address, which is the source already."""
    offer = stage.offer(family, [at(stage.there[0], family)])
    expected = _expected(stage, [target(stage.there[0].ip(family), 8080)], masqueraded=True)
    result = live(stage, request(stage, family, offer.vip, 80, expected=expected))
    assert (result.outcome, result.agrees) == (Outcome.ANSWERED, True), result
    assert result.masqueraded


def test_a_load_balancer_address_from_outside(stage: Stage, family: int) -> None:
    """The Local policy keeps the source also of the temporary machine, and its reply returns."""
    address = stage.address(family, outside=True)
    stage.offer(
        family,
        all_at([stage.here[0], stage.there[0]], family),
        type="LoadBalancer",
        load_balancer_ips=[address],
        externalTrafficPolicy="Local",
    )
    expected = _expected(stage, [target(stage.here[0].ip(family), 8080)], masqueraded=False)
    asked = request(stage, family, address, 80, source_kind=SourceKind.OUTSIDE, expected=expected)
    result = live(stage, asked)
    assert (result.outcome, result.agrees) == (Outcome.ANSWERED, True), result


@pytest.mark.parametrize("source", SOURCES)
def test_a_refused_service(stage: Stage, family: int, source: str) -> None:
    offer = stage.offer(family)
    fields = sources(stage, family)[source]
    asked = request(stage, family, offer.vip, 80, expected=Expected(Verdict.REFUSED), **fields)
    result = live(stage, asked)
    assert result.outcome is Outcome.REFUSED, result
    assert "port unreachable from" in result.detail
    assert not result.translated
    assert result.agrees
    _assert_trace(stage, result, "drop")
    assert not flows(stage.node.netns, offer.vip)


def test_a_dropped_probe(stage: Stage, family: int) -> None:
    """The policy is Local, and only another node has an endpoint."""
    address = stage.address(family, outside=True)
    stage.offer(
        family,
        [at(stage.there[0], family)],
        type="LoadBalancer",
        load_balancer_ips=[address],
        externalTrafficPolicy="Local",
    )
    asked = request(
        stage,
        family,
        address,
        80,
        source_kind=SourceKind.OUTSIDE,
        expected=Expected(Verdict.DROPPED),
        timeout=0.5,
    )
    result = live(stage, asked)
    assert result.outcome is Outcome.NO_ANSWER, result
    assert result.agrees, result
    _assert_trace(stage, result, "drop")


def test_an_endpoint_that_refuses(stage: Stage, family: int) -> None:
    """The node did its part: the endpoint is known although its reset ends the entry."""
    ports = [m.port(80, name="http", target=81)]
    offer = stage.offer(family, [at(stage.here[0], family)], ports=ports)
    endpoint = target(stage.here[0].ip(family), 81)
    for fields in sources(stage, family).values():
        asked = request(
            stage, family, offer.vip, 80, expected=_expected(stage, [endpoint]), **fields
        )
        result = live(stage, asked)
        assert (result.outcome, result.detail) == (Outcome.REFUSED, "RST"), result
        assert result.endpoint == endpoint
        assert result.agrees, result


def test_a_prediction_that_is_wrong(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    for expected in (
        _expected(stage, ["192.0.2.9:1"]),
        Expected(Verdict.REFUSED),
        Expected(Verdict.DROPPED),
    ):
        result = live(stage, request(stage, family, offer.vip, 80, expected=expected))
        assert result.agrees is False, result
        assert result.disagreement


def test_an_address_is_that_of_the_node_or_of_a_pod(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    for host in (stage.node, stage.here[1]):
        address = host.ip(family)
        asked = request(
            stage, family, offer.vip, 80, source_kind=SourceKind.ADDRESS, source=address
        )
        result = live(stage, asked)
        assert result.outcome is Outcome.ANSWERED, result
        assert result.source.startswith(target(address, 0).rpartition(":")[0])


def test_the_pods_own_connection_tracking_is_cleaned(stage: Stage, family: int) -> None:
    """A pod's namespace tracks connections if it has rules of its own."""
    offer = stage.offer(family, [at(stage.here[0], family)])
    pod = stage.here[1]
    program = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    rule = ["OUTPUT", "-m", "conntrack", "--ctstate", "NEW"]
    pod.netns.run(program, "-A", *rule)
    try:
        outcome = pod.traffic.connect("tcp", offer.vip, 80)
        assert isinstance(outcome, Answer)
        tracked = flows(pod.netns, offer.vip)
        assert tracked
        fields = sources(stage, family)["pod"]
        result = live(stage, request(stage, family, offer.vip, 80, **fields))
        assert result.outcome is Outcome.ANSWERED, result
        assert len(flows(pod.netns, offer.vip)) <= len(tracked)
        port = result.source.rpartition(":")[2]
        assert not [line for line in flows(pod.netns, offer.vip) if f"sport={port} " in line]
    finally:
        pod.netns.run(program, "-D", *rule)


def test_a_probe_without_a_route(space: NetNS) -> None:
    """All interfaces of the namespace are down."""
    asked = LiveRequest(IPFamily.IPV4, Protocol.TCP, "10.96.0.1", 80)
    result = space.call(lambda: probe(asked))
    assert result.outcome is Outcome.NOT_SENT
    assert "no route to 10.96.0.1" in result.detail


@pytest.mark.parametrize("family", list(IPFamily))
def test_clients_of_the_recent_match(space: NetNS, family: IPFamily) -> None:
    """iptables mode remembers clients like this where the kernel has no ipset."""
    program, one, other = {
        IPFamily.IPV4: ("iptables-legacy", "192.0.2.1", "192.0.2.10"),
        IPFamily.IPV6: ("ip6tables-legacy", "2001:db8::1", "2001:db8::10"),
    }[family]
    name = "KUBE-SEP-TEST"
    rule = ["-A", "OUTPUT", "-m", "recent", "--set", "--name", name, "--rdest"]
    space.run(program, *rule)
    listed = Path("/proc/thread-self/net/xt_recent", name)
    entries = [RecentAddress(family, name, address) for address in (one, other)]
    missing = RecentAddress(family, "KUBE-SEP-NONE", one)

    def steps() -> list[object]:
        found: list[object] = [affinity.absent(entries)]
        listed.write_text(f"+{other}\n", encoding="ascii")
        found.append(affinity.absent([*entries, missing]))
        affinity.remove(entries)
        found.append(affinity.absent(entries))
        return found

    assert space.call(steps) == [tuple(entries), (entries[0], missing), tuple(entries)]


def test_a_probe_that_cannot_be_sent(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    nowhere = "198.51.100.7" if family == 4 else "2001:db8::7"
    result = live(
        stage,
        request(stage, family, offer.vip, 80, source_kind=SourceKind.POD, source=nowhere),
    )
    assert result.outcome is Outcome.NOT_SENT
    assert nowhere in result.detail
    assert "hostPID" in result.detail


def test_a_namespace_with_the_address_of_a_pod_is_not_the_pod(stage: Stage, family: int) -> None:
    """Programs can make namespaces with any addresses; only that of the pod leads to the node."""
    offer = stage.offer(family, [at(stage.here[0], family)])
    address = "10.244.1.77" if family == 4 else "fd00:10:244:1::77"
    own = f"{address}/128 nodad" if family == 6 else f"{address}/32"
    gateway = stage.node.bridge_ips[0 if family == 4 else 1]
    false, true = (NetNS(f"svp-{os.getpid()}-{name}") for name in ("false", "true"))
    netns.ip_batch([f"netns add {false.name}", f"netns add {true.name}"])
    # Processes are looked at first, in the order of their numbers.
    sleeping = [space.popen(["sleep", "300"]) for space in (false, true)]
    try:
        netns.ip_batch(["link set lo up", f"addr add {own} dev lo"], false.name)
        netns.ip_batch(
            [
                # The bridge takes the lowest hardware address of its ports.
                f"link add late address fe:ff:ff:ff:ff:01 type veth peer name eth0 netns {true.name}",
                "link set late master br0 up",
            ],
            stage.node.netns.name,
        )
        # Redirected packets would reach the other pod directly, and its replies are translated.
        true.sysctl({"ipv6/conf/all/accept_redirects": "0", "ipv4/conf/all/accept_redirects": "0"})
        true.sysctl({f"{ip}/conf/eth0/accept_redirects": "0" for ip in ("ipv4", "ipv6")})
        lines = ["link set eth0 up", f"addr add {own} dev eth0", f"route add {gateway} dev eth0"]
        netns.ip_batch([*lines, f"route add default via {gateway} src {address}"], true.name)
        asked = request(
            stage, family, offer.vip, 80, source_kind=SourceKind.POD, source=address, timeout=5.0
        )
        result = live(stage, asked)
        assert result.outcome is Outcome.ANSWERED, result
    finally:
        netns.ip_batch(["link del late"], stage.node.netns.name, force=True)
        netns.remove([false.name, true.name])
        for process in sleeping:
            process.wait()


@pytest.mark.parametrize("source", ["node", "outside"])
def test_session_affinity_is_as_before(stage: Stage, family: int, source: str) -> None:
    """An entry that the probe made is removed; one that was there stays."""
    offer = stage.offer(
        family,
        all_at(stage.here, family),
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}},
    )
    fields = sources(stage, family)[source]
    asked = of_service(stage, offer, request(stage, family, offer.vip, 80, **fields))
    if stage.variant == "ipvs":
        refused = live(stage, asked)
        assert refused.outcome is Outcome.NOT_SENT, refused
        assert "--allow-affinity" in refused.detail
        return
    before, noticed = clients(stage, family), _noticed(stage)
    assert live(stage, asked).outcome is Outcome.ANSWERED
    assert clients(stage, family) == before
    if source == "node":
        ((name, _),) = ask(stage.node, "tcp", offer.vip, 80, n=1)
        remembered = clients(stage, family)
        assert remembered != before
        result = live(stage, asked)
        assert name in {pod.name for pod in stage.here if pod.ip(family) in result.endpoint}
        assert clients(stage, family) == remembered
    assert _noticed(stage) == noticed


def test_the_daemon_has_nothing_to_repair(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])

    before = _noticed(stage)
    for fields in sources(stage, family).values():
        assert live(stage, request(stage, family, offer.vip, 80, **fields)).outcome
    outcome = stage.node.traffic.connect("tcp", offer.vip, 80)
    assert isinstance(outcome, Answer)
    assert _noticed(stage) == before


def test_the_temporary_machine_gives_the_node_no_address(stage: Stage, family: int) -> None:
    """Addresses of the node would be served as node ports, and IPVS mode resyncs when they change."""
    offer = stage.offer(family, [at(stage.here[0], family)])
    changes: list[bool] = []
    watcher = stage.node.netns.call(
        lambda: AddressWatcher("kube-ipvs0", lambda: changes.append(True))
    )
    watcher.start()
    try:
        fields = sources(stage, family)["outside"]
        result = live(stage, request(stage, family, offer.vip, 80, **fields))
        assert result.outcome is Outcome.ANSWERED, result
        assert not changes
        with another_address(stage.node, "203.0.113.250"):
            eventually(lambda: changes, "the event of a real change")
    finally:
        watcher.stop()


def _noticed(stage: Stage) -> tuple[float, int]:
    """Return how many repairs and changes by other programs the daemon has reported."""
    found = stage.daemon.metrics().matching("svcproxy_drift_repairs_total")
    changed = sum("changed_by_others" in line for line in stage.daemon.logs())
    return sum(sample.value for sample in found), changed


def test_without_rights_the_reason_is_said() -> None:
    """A process without capabilities gets a reason for each kind of source."""
    script = (
        "import sys; from svcproxy.commands.live import probe;"
        "from svcproxy.probe.core.result import *; from svcproxy.model.names import *;"
        "r = [probe(LiveRequest(IPFamily.IPV4, Protocol.TCP, '127.0.0.1', 9, source_kind=k,"
        " source=s)) for k, s in ((SourceKind.OUTSIDE, ''), (SourceKind.POD, '198.51.100.7'))];"
        "sys.exit(any(x.outcome is not Outcome.NOT_SENT or 'run as' not in x.detail for x in r)"
        " and str(r))"
    )
    command = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
