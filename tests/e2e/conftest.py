"""A real API server, when ``KUBEBUILDER_ASSETS`` names the folder that holds one (envtest's convention)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from testbed.cluster import Cluster
from testbed.realapi import RealApiServer


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=3) as built:
        built.serve(tcp=(8080,), udp=(5353,))
        yield built


@pytest.fixture(scope="module")
def api(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApiServer]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("KUBEBUILDER_ASSETS does not name a folder with kube-apiserver and etcd")
    server = RealApiServer(
        cluster.nodes[0].netns, Path(assets), tmp_path_factory.mktemp("apiserver")
    )
    try:
        server.start()
        manifests = Path(__file__).parents[2] / "deploy/daemonset.yaml"
        wanted = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding"}
        documents = [d for d in yaml.safe_load_all(manifests.read_text()) if d["kind"] in wanted]
        status, _ = server.request("GET", "/api/v1/namespaces/kube-system")
        if status == 404:
            metadata = {"name": "kube-system"}
            server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        server.create(*documents)
        yield server
    finally:
        server.close()
