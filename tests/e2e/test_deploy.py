"""The manifests as kubectl builds them and the API server takes them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.realapi import RealApiServer

pytestmark = [pytest.mark.kernel, pytest.mark.apiserver]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MODES = ("iptables", "ipvs", "nftables")
# kubeadm's layout, with all that an API server demands
KUBE_PROXY = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system, labels: {k8s-app: kube-proxy}}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  updateStrategy: {type: RollingUpdate}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec:
      hostNetwork: true
      containers:
        - name: kube-proxy
          image: kube-proxy:v1.36.2
          command: [/usr/local/bin/kube-proxy, --config=/var/lib/kube-proxy/config.conf]
          securityContext: {privileged: true}
          volumeMounts:
            - {mountPath: /var/lib/kube-proxy, name: kube-proxy}
            - {mountPath: /run/xtables.lock, name: xtables-lock}
            - {mountPath: /lib/modules, name: lib-modules, readOnly: true}
      volumes:
        - {name: kube-proxy, configMap: {name: kube-proxy}}
        - {name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
        - {name: lib-modules, hostPath: {path: /lib/modules, type: ""}}
"""


def daemon_set(api: RealApiServer, name: str) -> Any:
    shown = api.kubectl("-n", "kube-system", "get", "daemonset", name, "--output=json")
    return json.loads(shown)["spec"]


def test_the_plain_manifest_applies_as_it_is_and_again_changes_nothing(api: RealApiServer) -> None:
    file = f"--filename={DEPLOY / 'daemonset.yaml'}"
    api.kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", file)
    before = daemon_set(api, "svcproxy")
    api.kubectl("apply", "--server-side", "--validate=strict", file)
    assert daemon_set(api, "svcproxy") == before


@pytest.mark.parametrize("mode", MODES)
def test_every_overlay_is_built_and_taken(api: RealApiServer, mode: str) -> None:
    folder = DEPLOY / "overlays" / mode
    built = list(yaml.safe_load_all(api.kubectl("kustomize", str(folder))))
    (config_map,) = (document for document in built if document["kind"] == "ConfigMap")
    assert config_map["data"] == {"config.conf": (folder / "config.conf").read_text()}
    done = api.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", f"--kustomize={folder}"
    )
    assert len(done.splitlines()) == len(built)


def test_kubeadms_daemonset_gets_another_image_a_probe_and_fewer_privileges(
    api: RealApiServer,
) -> None:
    api.kubectl("create", "--filename=-", stdin=KUBE_PROXY)
    before = daemon_set(api, "kube-proxy")
    overlay = f"--kustomize={DEPLOY / 'overlays/kubeadm'}"
    api.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=svcproxy", overlay)
    after = daemon_set(api, "kube-proxy")
    (container,) = after["template"]["spec"]["containers"]
    (former,) = before["template"]["spec"]["containers"]
    assert container["image"].startswith("svcproxy:")
    container["image"] = former["image"]
    probe = container.pop("readinessProbe")["httpGet"]
    assert (probe["path"], probe["port"]) == ("/readyz", 10256)
    assert container.pop("securityContext") == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
    }
    assert former.pop("securityContext") == {"privileged": True}
    (prepare,) = after["template"]["spec"].pop("initContainers")
    assert prepare["securityContext"]["privileged"] is True
    assert after["updateStrategy"].pop("type") == "OnDelete"
    assert before["updateStrategy"].pop("type") == "RollingUpdate"
    assert after == before


def test_the_way_back_restores_kubeadms_daemonset(api: RealApiServer) -> None:
    file = KUBE_PROXY.replace("name: kube-proxy, namespace", "name: way-back, namespace")
    api.kubectl("create", "--filename=-", stdin=file)
    before = daemon_set(api, "way-back")
    (overlay,) = yaml.safe_load_all(api.kubectl("kustomize", str(DEPLOY / "overlays/kubeadm")))
    overlay["metadata"]["name"] = "way-back"
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager=svcproxy")
    api.kubectl(*apply, "--filename=-", stdin=json.dumps(overlay))
    page = (ROOT / "docs/migration.md").read_text()
    _, _, way_back = page.partition("## Roll back")
    found = re.search(r"patch daemonset kube-proxy --patch '(.*?)'", way_back, re.DOTALL)
    assert found
    on = ("--namespace=kube-system", "daemonset/way-back")
    api.kubectl("set", "image", *on, "kube-proxy=kube-proxy:v1.36.2")
    api.kubectl("patch", *on, "--patch", found[1])
    after = daemon_set(api, "way-back")
    after["updateStrategy"] = before["updateStrategy"]
    assert after == before
