"""Malformed manifests: reported once and precisely, without effect on other objects."""

import pytest

from testbed import manifests as m
from testbed.waiting import eventually
from tests.kernel.conftest import Stage, at, servers

pytestmark = pytest.mark.kernel

SKIPPED = "svcproxy_skipped_objects_total"


def _manifest(vip: str, port: str) -> str:
    """A Service in a separate file; ``port`` is in line 13."""
    family = "IPv6" if ":" in vip else "IPv4"
    return f"""\
apiVersion: v1
kind: Service
metadata:
  name: written
  namespace: default
spec:
  clusterIP: "{vip}"
  clusterIPs: ["{vip}"]
  ipFamilies: [{family}]
  ports:
  - name: http
    targetPort: 8080
    port: {port}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: written-1
  namespace: default
  labels:
    kubernetes.io/service-name: written
addressType: {family}
ports:
- name: http
  port: 8080
endpoints:
- addresses: ["POD"]
  nodeName: node1
"""


class Written:
    """A Service in a separate file, with a mistake."""

    def __init__(self, stage: Stage, family: int) -> None:
        self.stage = stage
        self.vip = stage.address(family)
        self.pod = stage.here[1].ip(family)
        self.name = f"by-hand-{family}.yaml"

    def write(self, port: str) -> None:
        text = _manifest(self.vip, port).replace("POD", self.pod)
        self.stage.folder.write(self.name, text)
        self.stage.sync()

    def remove(self) -> None:
        (self.stage.folder.path / self.name).unlink()
        self.stage.sync()

    def complaints(self) -> list[str]:
        return [
            line
            for line in self.stage.daemon.logs()
            if "object.skipped" in line and self.name in line
        ]

    def served(self) -> bool:
        return servers(self.stage.client, "tcp", self.vip, 80, n=5) == {"pod1b"}


def _skipped(stage: Stage) -> float:
    return stage.daemon.metrics().value(SKIPPED)


@pytest.mark.behaviour("Conflicts and invalid objects: Malformed manifest")
def test_a_malformed_manifest_is_reported_once_and_affects_no_other(
    stage: Stage, family: int
) -> None:
    before = _skipped(stage)
    written = Written(stage, family)
    written.write("eighty")
    try:
        # Other Services are created, changed and deleted meanwhile.
        offer = stage.offer(family, [at(stage.here[0], family)])
        assert servers(stage.client, "tcp", offer.vip, 80, n=5) == {"pod1a"}
        offer.endpoints(at(stage.here[1], family))
        assert servers(stage.client, "tcp", offer.vip, 80, n=5) == {"pod1b"}
        (complaint,) = written.complaints()
        assert "kind=Service" in complaint
        assert "name=default/written" in complaint
        assert "field=spec.ports[0].port" in complaint
        assert f"{written.name}:13" in complaint
        assert "reason=" in complaint
        assert _skipped(stage) == before + 1
    finally:
        written.remove()


@pytest.mark.behaviour("Conflicts and invalid objects: Manifest that becomes malformed")
def test_a_repaired_manifest_is_served(stage: Stage, family: int) -> None:
    written = Written(stage, family)
    written.write("80000")
    written.write("80")
    assert eventually(written.served, "the repaired Service")
    written.remove()


@pytest.mark.behaviour("Conflicts and invalid objects: Manifest that becomes malformed")
def test_a_spoilt_manifest_keeps_its_last_good_state(stage: Stage, family: int) -> None:
    written = Written(stage, family)
    written.write("80")
    assert eventually(written.served, "the Service")
    for bad in ("0", "[80", "99999"):  # the second is no YAML at all
        written.write(bad)
        assert written.served()
    assert len(written.complaints()) >= 3
    written.remove()


@pytest.mark.behaviour("Conflicts and invalid objects: Malformed manifest")
def test_one_bad_object_does_not_spoil_others_of_its_file(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    bad = stage.offer(family, [at(stage.here[1], family)], vip="no address")
    other = stage.offer(family, [at(stage.here[1], family)])
    assert servers(stage.client, "tcp", offer.vip, 80, n=5) == {"pod1a"}
    assert servers(stage.client, "tcp", other.vip, 80, n=5) == {"pod1b"}
    assert stage.daemon.wait_log(f"default/{bad.service['metadata']['name']}")
    bad.remove()


@pytest.mark.behaviour("Conflicts and invalid objects: Malformed manifest")
def test_a_file_that_is_no_manifest_is_reported(stage: Stage) -> None:
    stage.folder.write("notes.yaml", "just: [some, notes")
    stage.sync()
    line = stage.daemon.wait_log("notes.yaml")
    assert "object.skipped" in line
    assert "YAML" in line
    (stage.folder.path / "notes.yaml").unlink()
    offer = stage.offer(4, [at(stage.here[0], 4)], ports=[m.port(80, name="http", target=8080)])
    assert servers(stage.client, "tcp", offer.vip, 80, n=5) == {"pod1a"}
