"""Hostile objects that a real API server accepts: all other Services are served."""

import json
from functools import partial
from typing import Any

import pytest

from testbed import manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.realapi import RealApiServer
from testbed.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.apiserver]


def service(name: str, number: int, **metadata: Any) -> dict[str, Any]:
    ports = [manifests.port(80, name="http", target=8080)]
    made = manifests.service(name, [f"10.96.2.{number}"], ports)
    made["metadata"] |= metadata
    return made


MANAGED_FIELDS = [
    {
        "manager": "kubectl",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": "NESTED",
    }
]


def encoded(obj: dict[str, Any], depth: int = 1500) -> str:
    """JSON, with objects that contain each other in place of ``"NESTED"``.

    Python's own encoder cannot write as many.
    """
    deep = '{"f:a":' * depth + "{}" + "}" * depth
    return json.dumps(obj).replace('"NESTED"', deep)


HOSTILE: dict[str, dict[str, Any]] = {
    "deep": {"managedFields": MANAGED_FIELDS},
    "bulky": {"annotations": {"example.com/bulk": "[{" * 120_000}},
    "text": {"annotations": {"example.com/text": '\u2028\x1b[2J"\n-A FORWARD -j DROP\u202e'}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_service_costs_no_other_service(
    cluster: Cluster, api: RealApiServer, name: str
) -> None:
    node = cluster.nodes[0]
    number = 10 + 10 * list(HOSTILE).index(name)
    hostile = service(f"hostile-{name}", number, **HOSTILE[name])
    owners = [hostile, service(f"before-{name}", number + 1), service(f"after-{name}", number + 2)]
    flags = {"kubeconfig": str(api.kubeconfig()), "proxy-mode": "nftables"}

    def served(owner: dict[str, Any]) -> bool:
        address = owner["spec"]["clusterIP"]
        return set(cluster.client.traffic.burst("tcp", address, 80, 5)) == {"pod1a"}

    def all_served(how: str) -> None:
        for owner in owners:
            eventually(partial(served, owner), f"{owner['metadata']['name']}, {how}")

    def create(owner: dict[str, Any]) -> None:
        status, answer = api.request("POST", "/api/v1/namespaces/default/services", encoded(owner))
        assert status == 201, answer
        endpoints = [manifests.endpoint(node.pods[0].ip(4), node=node.name)]
        api.create(manifests.endpoint_slice(owner, endpoints))

    with Daemon(node, flags=flags) as running:
        for owner in owners:  # one at a time: as events of a watch
            create(owner)
        all_served("watched")
        running.stop()
    node.netns.run("nft", "delete", "table", "ip", "svcproxy")
    with Daemon(node, flags=flags):  # an empty kernel, and everything at once: as a list
        all_served("listed")
