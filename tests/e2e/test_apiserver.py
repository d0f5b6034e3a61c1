"""The daemon on a real API server, with exactly the rights that the DaemonSet gives it."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from testbed import manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.outcomes import Answer, Refused
from testbed.realapi import RealApiServer
from testbed.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.apiserver]


def dual_stack(name: str, number: int, **spec: Any) -> dict[str, Any]:
    ports = [manifests.port(80, name="http", target=8080)]
    addresses = [f"10.96.1.{number}", f"fd00:10:96::{256 + number:x}"]
    return manifests.service(name, addresses, ports, ipFamilyPolicy="RequireDualStack", **spec)


def pieces(cluster: Cluster, owner: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    node = cluster.nodes[0]
    return [
        manifests.endpoint_slice(
            owner,
            [manifests.endpoint(p.ip(family), node=node.name) for p in node.pods[:count]],
            suffix=f"v{family}",
        )
        for family in (4, 6)
    ]


@pytest.fixture
def daemon(cluster: Cluster, api: RealApiServer) -> Iterator[Daemon]:
    flags = {"kubeconfig": str(api.kubeconfig()), "iptables-min-sync-period": "0s"}
    with Daemon(cluster.nodes[0], flags=flags) as running:
        yield running


def servers(cluster: Cluster, address: str) -> set[str]:
    return set(cluster.client.traffic.burst("tcp", address, 80, 30))


def served_by(cluster: Cluster, address: str, expected: set[str]) -> bool:
    return servers(cluster, address) == expected


def test_services_come_change_and_go(cluster: Cluster, api: RealApiServer, daemon: Daemon) -> None:
    web = dual_stack("web", 10)
    four, six = pieces(cluster, web)
    api.create(web, four, six)
    everyone = {"pod1a", "pod1b", "pod1c"}
    for address in web["spec"]["clusterIPs"]:
        eventually(partial(served_by, cluster, address, everyone), address)

    for piece in pieces(cluster, web, count=1):
        api.replace(piece)
    for address in web["spec"]["clusterIPs"]:
        eventually(partial(served_by, cluster, address, {"pod1a"}), address)

    api.delete(four)
    address = web["spec"]["clusterIPs"][0]
    eventually(lambda: isinstance(_dial(cluster, address), Refused), "REJECT without endpoints")

    api.delete(web)
    eventually(
        lambda: "default/web" not in daemon.node.netns.run("iptables-save").stdout,
        "no rule of the Service",
    )


def test_an_outage_of_the_api_leaves_traffic_alone_and_is_made_up_for(
    cluster: Cluster, api: RealApiServer, daemon: Daemon
) -> None:
    web = dual_stack("steady", 20)
    four, six = pieces(cluster, web)
    api.create(web, four, six)
    address = web["spec"]["clusterIPs"][0]
    eventually(lambda: len(servers(cluster, address)) == 3, "three endpoints")
    load = cluster.client.traffic.load("tcp", address, 80, rate=200)
    api.stop_apiserver()
    daemon.wait_log("watch", timeout=10)
    api.start()
    for piece in pieces(cluster, web, count=2):
        api.replace(piece)
    eventually(lambda: servers(cluster, address) == {"pod1a", "pod1b"}, "the change", timeout=60)
    assert not load.stop().failures


def test_conflicts_are_told_as_events(cluster: Cluster, api: RealApiServer, daemon: Daemon) -> None:
    first = dual_stack("first", 30, externalIPs=["203.0.113.30"])
    second = dual_stack("second", 31, externalIPs=["203.0.113.30"])
    api.create(first)
    eventually(lambda: "default/first" in daemon.node.netns.run("iptables-save").stdout)
    api.create(second)

    def told() -> bool:
        _, events = api.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")
        found = [e for e in events["items"] if e["reason"] == "AddressConflict"]
        return any(
            e["regarding"]["name"] == "second" and "203.0.113.30 80/TCP" in e["note"] for e in found
        )

    eventually(told, "an Event about the newer Service", timeout=15)


def _dial(cluster: Cluster, address: str) -> object:
    outcome = cluster.client.traffic.connect("tcp", address, 80)
    assert isinstance(outcome, Answer | Refused), outcome
    return outcome


def test_a_deeply_nested_object_hurts_nobody(cluster: Cluster, api: RealApiServer) -> None:
    """The API server stores it, and kube-proxy serves it."""
    deep = dual_stack("deep", 40)
    entry = {"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1"}
    entry |= {"fieldsV1": "@FIELDS@", "time": "2024-01-01T00:00:00Z"}
    deep["metadata"]["managedFields"] = [entry]
    web = dual_stack("beside", 41)
    nested = '{"f:a":' * 1500 + "{}" + "}" * 1500
    text = json.dumps(deep).replace('"@FIELDS@"', nested)
    api.kubectl("create", "--validate=false", "-f", "-", stdin=text)
    api.create(web, *pieces(cluster, deep), *pieces(cluster, web))
    stored = api.kubectl("get", "service", "deep", "-o", "json", "--show-managed-fields")
    assert stored.count('"f:a"') == 1500
    flags = {"kubeconfig": str(api.kubeconfig()), "iptables-min-sync-period": "0s"}
    with Daemon(cluster.nodes[0], flags=flags):
        for obj in (web, deep):
            for address in obj["spec"]["clusterIPs"]:
                eventually(
                    partial(served_by, cluster, address, {"pod1a", "pod1b", "pod1c"}), address
                )
    api.kubectl("delete", "service", "deep")
    api.delete(web)
