"""The plugin finds the pods of the manifests that are shipped."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from svcproxy.kubectl.cluster import _SELECTORS, _pod, _PodObject

ROOT = Path(__file__).parents[3]


def daemon_set(file: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / file).read_text(encoding="utf-8"))
    (found,) = (document for document in documents if document["kind"] == "DaemonSet")
    return dict(found["spec"]["template"])


@pytest.mark.parametrize(
    ("file", "container"),
    [("base/svcproxy.yaml", "svcproxy"), ("overlays/kubeadm/daemonset.yaml", "kube-proxy")],
)
def test_the_container_of_the_manifests_is_found(file: str, container: str) -> None:
    spec = {**daemon_set(file)["spec"], "nodeName": "node1"}
    pod = {"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running"}}
    found = _pod(msgspec.convert(pod, _PodObject))
    assert found is not None
    assert (found.name, found.node, found.container, found.problem) == ("p", "node1", container, "")


def test_the_pods_of_the_manifests_have_the_selected_label() -> None:
    labels = daemon_set("base/svcproxy.yaml")["metadata"]["labels"]
    key, _, value = _SELECTORS[0].partition("=")
    assert labels[key] == value


def test_the_image_has_the_program_in_its_path() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "ln -s /opt/svcproxy/bin/svcproxy /usr/local/bin/svcproxy" in text


@pytest.mark.parametrize(
    ("image", "phase", "problem"),
    [
        ("registry:5000/x/svcproxy@sha256:0", "Pending", "its pod is Pending"),
        ("registry.k8s.io/kube-proxy:v1.36.0", "Running", None),
    ],
)
def test_pods_of_kube_proxy_are_left_out(image: str, phase: str, problem: str | None) -> None:
    containers = [{"name": "kube-proxy", "image": image}]
    pod = {"spec": {"nodeName": "n", "containers": containers}, "status": {"phase": phase}}
    found = _pod(msgspec.convert(pod, _PodObject))
    assert (found.problem if found else None) == problem
