"""One cluster for all tests of the test bed, with hand-written rules for Services."""

from collections.abc import Iterator

import pytest

from testbed.cluster import Cluster


def rules(vip: str, node: str, pods: tuple[str, str], left: str, right: str) -> str:
    """Install rules as a proxy would.

    Port 80 of the VIP is translated to the first pod, port 81 to the second, 82 is rejected and 83
    dropped; node port 30080 is translated to the first pod. Hairpin and node port traffic is
    masqueraded.
    """
    first, second = (f"{left}{pod}{right}:8080" for pod in pods)
    lines = ["*filter"]
    lines += [
        f"-A {hook} -d {vip} -p {proto} --dport {port} -j {verdict}"
        for hook in ("FORWARD", "OUTPUT")
        for proto in ("tcp", "udp")
        for port, verdict in ((82, "REJECT"), (83, "DROP"))
    ]
    lines += ["COMMIT", "*nat"]
    for proto in ("tcp", "udp"):
        for hook in ("PREROUTING", "OUTPUT"):
            lines += [
                f"-A {hook} -d {vip} -p {proto} --dport {port} -j DNAT --to-destination {to}"
                for port, to in ((80, first), (81, second))
            ]
        lines += [
            f"-A PREROUTING -d {node} -p {proto} --dport 30080 -j DNAT --to-destination {first}",
            f"-A POSTROUTING -s {pods[0]} -d {pods[0]} -p {proto} -j MASQUERADE",
            f"-A POSTROUTING -m conntrack --ctstate DNAT --ctorigdst {node} -j MASQUERADE",
        ]
    return "\n".join([*lines, "COMMIT", ""])


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2, pods=2) as made:
        made.serve(tcp=[8080], udp=[8080])
        yield made


@pytest.fixture(scope="session")
def services(cluster: Cluster) -> Cluster:
    node, (a, b) = cluster.nodes[0], cluster.nodes[0].pods
    four = rules("10.96.0.1", node.ipv4, (a.ipv4, b.ipv4), "", "")
    six = rules("fd00:10:96::1", node.ipv6, (a.ipv6, b.ipv6), "[", "]")
    node.netns.run("iptables-restore", stdin=four)
    node.netns.run("ip6tables-restore", stdin=six)
    return cluster
