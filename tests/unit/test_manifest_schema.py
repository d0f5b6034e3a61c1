"""What we ship is what Kubernetes 1.36 understands: every file against its published schemas.

Strict: a misspelled field is an error, which the API server would drop with a warning.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

DEPLOY = Path(__file__).parents[2] / "deploy"
VERSION = "1.36"
SCHEMAS = f"kubernetes-json-schema/v{VERSION}.0-local-strict"

KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
# Parts of objects, to be merged with the rest
PARTIAL = {
    "overlays/kubeadm/daemonset.yaml",
    "overlays/ipvs/modules.yaml",
    "overlays/nftables/capabilities.yaml",
    "overlays/node-by-node/labelled-nodes.yaml",
}
MANIFESTS = sorted(
    str(path.relative_to(DEPLOY))
    for path in DEPLOY.rglob("*.yaml")
    if path not in KUSTOMIZATIONS and not path.is_symlink() and "prometheus" not in path.parts
)


@cache
def validator(kind: str, version: str) -> Any:
    # rbac.authorization.k8s.io/v1 is called rbac-v1 there, plain v1 stays v1
    name = "-".join([kind.lower(), *(part.split(".")[0] for part in version.split("/"))])
    schema = schema_contents(f"{SCHEMAS}/{name}.json", VERSION)
    definitions = schema_contents(f"{SCHEMAS}/_definitions.json", VERSION)
    registry = Resource.from_contents(definitions) @ Registry()
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ registry)


def complaints(document: dict[str, Any], *, partial: bool = False) -> Iterator[str]:
    """What is wrong with an object; of a part of one, nothing is missing."""
    for error in validator(document["kind"], document["apiVersion"]).iter_errors(document):
        if not (partial and error.validator == "required"):
            yield f"{'.'.join(map(str, error.path))}: {error.message}"


def documents(name: str) -> list[dict[str, Any]]:
    found = list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))
    assert found
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_valid(name: str) -> None:
    for document in documents(name):
        assert list(complaints(document, partial=name in PARTIAL)) == []


def test_the_schema_notices_what_is_wrong() -> None:
    (daemon_set,) = (d for d in documents("base/svcproxy.yaml") if d["kind"] == "DaemonSet")
    pod = daemon_set["spec"]["template"]["spec"]
    pod["hostNetwrok"] = True
    pod["containers"][0]["ports"][0]["containerPort"] = "http"
    del daemon_set["spec"]["selector"]
    found = "\n".join(complaints(daemon_set))
    for part in ("hostNetwrok", "containerPort", "'selector' is a required property"):
        assert part in found
    assert "selector" not in "\n".join(complaints(daemon_set, partial=True))


def named(document: dict[str, Any]) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_every_kustomization_names_files_and_objects_that_exist(path: Path) -> None:
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert text.pop("apiVersion") == "kustomize.config.k8s.io/v1beta1"
    assert text.pop("kind") == "Kustomization"
    base = {named(document) for document in documents("base/svcproxy.yaml")}
    for resource in text.pop("resources"):
        assert (path.parent / resource).exists()
    for patch in text.pop("patches", []):
        file = path.parent / patch["path"]
        (document,) = documents(str(file.relative_to(DEPLOY)))
        assert named(document) in base
    for generator in text.pop("configMapGenerator", []):
        assert generator["behavior"] == "replace"
        assert ("ConfigMap", generator["namespace"], generator["name"]) in base
        assert all((path.parent / file).is_file() for file in generator["files"])
    assert text == {}


def test_the_plain_manifest_is_the_base() -> None:
    # A copy and no link, or it could not be applied by its URL.
    plain, base = DEPLOY / "daemonset.yaml", DEPLOY / "base/svcproxy.yaml"
    assert not plain.is_symlink()
    assert plain.read_bytes() == base.read_bytes(), "copy deploy/base/svcproxy.yaml"
