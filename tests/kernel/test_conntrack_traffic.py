"""UDP clients that keep their source port; the test installs rules in place of the daemon."""

from collections.abc import Iterator

import pytest

from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from testbed.cluster import Cluster
from testbed.outcomes import Answer, Refused, TimedOut
from tests.unit.conntrack.ports import V6, Addresses, both_families, by_name, change, service_port

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=2) as made:
        made.serve(tcp=[8080], udp=[8080])
        yield made


def redirect(cluster: Cluster, net: Addresses, pod: str | None) -> None:
    """Translate port 80 of the VIP and node port 30080 to a pod, or do not translate them."""
    node = cluster.nodes[0]
    tool = "ip6tables" if net is V6 else "iptables"
    # This rule stays: without any NAT rule the kernel stops tracking and translating.
    masquerade = f"-m conntrack --ctstate DNAT --ctorigdst {net.node} -j MASQUERADE"
    text = ["*nat", "-A PREROUTING -j RETURN", f"-A POSTROUTING {masquerade}"]
    if pod is not None:
        target = f"-j DNAT --to-destination {f'[{pod}]' if net is V6 else pod}:8080"
        for proto in ("tcp", "udp"):
            text[1:1] = [
                f"-A PREROUTING -d {net.vip} -p {proto} --dport 80 {target}",
                f"-A PREROUTING -d {net.node} -p {proto} --dport 30080 {target}",
            ]
    node.netns.run(f"{tool}-restore", stdin="\n".join([*text, "COMMIT", ""]))


def reset(cluster: Cluster, net: Addresses) -> None:
    """Start without a Service and without flows."""
    redirect(cluster, net, None)
    cluster.nodes[0].netns.run("conntrack", "-F")


def web(net: Addresses, pod: str | None) -> dict[ServicePortName, ServicePort]:
    frontends = (f"{net.vip}:80", ":30080")
    return by_name(service_port("web", frontends, [f"{pod}:8080"] if pod else []))


def ask(cluster: Cluster, place: str, port: int) -> str:
    """Return which server answers a client that keeps its source port."""
    outcome = cluster.client.traffic.connect("udp", place, port, source_port=7777, timeout=0.2)
    match outcome:
        case Answer():
            return outcome.server
        case Refused() | TimedOut():
            return "none"
    pytest.fail(f"{outcome}")


def places(net: Addresses) -> list[tuple[str, int]]:
    return [(net.vip, 80), (net.node, 30080)]


def sweep(cluster: Cluster, net: Addresses, *states: str | None) -> int:
    before, after = (web(net, pod) for pod in states)
    flows = StaleFlows(net.family)
    return cluster.nodes[0].netns.call(lambda: flows.clean(change(before, after)))


@both_families
def test_a_client_with_a_fixed_port_reaches_the_new_endpoint(
    cluster: Cluster, net: Addresses
) -> None:
    reset(cluster, net)
    a, b, _ = net.pods
    redirect(cluster, net, a)
    assert [ask(cluster, *place) for place in places(net)] == ["pod1a", "pod1a"]
    redirect(cluster, net, b)
    assert [ask(cluster, *place) for place in places(net)] == ["pod1a", "pod1a"]  # stale
    assert sweep(cluster, net, a, b) == 2
    assert [ask(cluster, *place) for place in places(net)] == ["pod1b", "pod1b"]
    assert sweep(cluster, net, a, b) == 0


@both_families
def test_a_flow_that_began_before_the_service_reaches_it(cluster: Cluster, net: Addresses) -> None:
    reset(cluster, net)
    assert [ask(cluster, *place) for place in places(net)] == ["none", "none"]
    redirect(cluster, net, net.pods[0])
    assert [ask(cluster, *place) for place in places(net)] == ["none", "none"]  # stale
    assert sweep(cluster, net, None, net.pods[0]) == 2
    assert [ask(cluster, *place) for place in places(net)] == ["pod1a", "pod1a"]


@both_families
def test_a_service_scaled_to_zero_is_no_longer_answered(cluster: Cluster, net: Addresses) -> None:
    reset(cluster, net)
    redirect(cluster, net, net.pods[0])
    assert [ask(cluster, *place) for place in places(net)] == ["pod1a", "pod1a"]
    redirect(cluster, net, None)
    assert [ask(cluster, *place) for place in places(net)] == ["pod1a", "pod1a"]  # stale
    assert sweep(cluster, net, net.pods[0], None) == 2
    assert [ask(cluster, *place) for place in places(net)] == ["none", "none"]


@both_families
def test_an_established_tcp_connection_survives(cluster: Cluster, net: Addresses) -> None:
    redirect(cluster, net, net.pods[0])
    with cluster.client.traffic.hold("tcp", net.vip, 80) as held:
        assert isinstance(held.first, Answer)
        redirect(cluster, net, None)
        assert sweep(cluster, net, net.pods[0], None) == 0
        outcome = held.check()
        assert isinstance(outcome, Answer)
        assert outcome.server == "pod1a"
