import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from svcproxy import __version__
from svcproxy.cli import read as read_flags
from svcproxy.config import AVAILABLE_MODES, Config, ProxyMode
from svcproxy.kube.credentials import SERVICE_ACCOUNT

ROOT = Path(__file__).parents[2]

# The permissions that the daemon uses; tests/kernel/test_privileges.py derives them from requests
NEEDED = {
    ("", "services"): {"list", "watch"},
    ("discovery.k8s.io", "endpointslices"): {"list", "watch"},
    ("networking.k8s.io", "servicecidrs"): {"list", "watch"},
    ("", "nodes"): {"list", "watch"},
    ("events.k8s.io", "events"): {"create"},
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    found = [obj for obj in yaml.safe_load_all(read("deploy/daemonset.yaml")) if obj]
    kinds = [obj["kind"] for obj in found]
    assert sorted(kinds) == sorted(set(kinds))
    return dict(zip(kinds, found, strict=True))


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> Any:
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (found,) = pod["containers"]
    return found


def test_all_required_objects_exist(objects: dict[str, Any]) -> None:
    assert set(objects) == {
        "ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"
    }  # fmt: skip
    for kind in ("ConfigMap", "ServiceAccount", "DaemonSet"):
        assert objects[kind]["metadata"]["namespace"] == "kube-system"


def test_rbac_grants_exactly_what_the_code_uses(objects: dict[str, Any]) -> None:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in objects["ClusterRole"]["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((group, resource), set()).update(rule["verbs"])
    assert granted == NEEDED


def test_the_role_is_bound_to_the_account_of_the_pod(objects: dict[str, Any], pod: Any) -> None:
    binding = objects["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == objects["ClusterRole"]["metadata"]["name"]
    (subject,) = binding["subjects"]
    account = objects["ServiceAccount"]["metadata"]
    assert (subject["namespace"], subject["name"]) == (account["namespace"], account["name"])
    assert pod["serviceAccountName"] == account["name"]


def test_selector_matches_the_pods(objects: dict[str, Any]) -> None:
    spec = objects["DaemonSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_it_runs_on_every_linux_node_before_any_service_works(
    objects: dict[str, Any], pod: Any
) -> None:
    assert pod["hostNetwork"] is True
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["dnsPolicy"] == "Default"
    assert objects["DaemonSet"]["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"},
    }


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_the_command_line_is_valid(
    objects: dict[str, Any], pod: Any, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "config.conf"
    file.write_text(objects["ConfigMap"]["data"]["config.conf"], encoding="utf-8")
    (found,) = pod[kind]
    # The init container ends in a line of shell
    words = shlex.split(" ".join(found["command"]).splitlines()[-1].replace("exec ", ""))
    loaded = read_flags([word.replace("/etc/svcproxy", str(tmp_path)) for word in words[1:]], {})
    assert words[0] == "svcproxy"
    assert not loaded.warnings
    assert loaded.config.proxy_mode is ProxyMode.IPTABLES
    assert loaded.config.kubeconfig == "/etc/svcproxy/kubeconfig.conf"
    assert loaded.config.init_only is (kind == "initContainers")
    assert loaded.config.hostname_override in {"$(node_name)", "$node_name"}  # the kubelet fills it
    node_name = {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    assert found["env"] == [{"name": "NODE_NAME", **node_name}]


@pytest.mark.parametrize("mode", [*ProxyMode])
def test_the_configuration_of_each_overlay_is_read_without_a_warning(mode: ProxyMode) -> None:
    file = ROOT / "deploy/overlays" / mode / "config.conf"
    if mode in AVAILABLE_MODES:
        loaded = read_flags([f"--config={file}"], {})
        assert not loaded.warnings
        assert loaded.config.proxy_mode is mode
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["mode"] == mode


def test_the_api_server_is_named_by_a_file_that_needs_no_service(pod: Any) -> None:
    document = yaml.safe_load(read("deploy/api-server.yaml"))
    sources = {volume["name"]: volume for volume in pod["volumes"]}["configuration"]["projected"]
    maps = {
        source["configMap"]["name"]: source["configMap"]["items"] for source in sources["sources"]
    }
    assert maps[document["metadata"]["name"]] == [{"key": k, "path": k} for k in document["data"]]
    kubeconfig = yaml.safe_load(document["data"]["kubeconfig.conf"])
    assert kubeconfig["users"][0]["user"] == {"tokenFile": str(SERVICE_ACCOUNT / "token")}
    assert kubeconfig["clusters"][0]["cluster"]["certificate-authority"] == str(
        SERVICE_ACCOUNT / "ca.crt"
    )


@pytest.mark.parametrize(
    ("probe", "path"), [("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")]
)
def test_probes_use_the_daemon_s_ports(container: Any, probe: str, path: str) -> None:
    config = Config()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "healthz"}
    assert config.healthz_bind_address is not None
    assert config.metrics_bind_address is not None
    assert ports == {
        "healthz": config.healthz_bind_address.port,
        "metrics": config.metrics_bind_address.port,
    }


def test_privileges(pod: Any, container: Any) -> None:
    security = container["securityContext"]
    assert "privileged" not in security
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    (prepare,) = pod["initContainers"]
    assert prepare["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}


def test_nftables_mode_gets_no_raw_socket() -> None:
    folder = ROOT / "deploy/overlays/nftables"
    patch = yaml.safe_load((folder / "capabilities.yaml").read_text(encoding="utf-8"))
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == "svcproxy"
    assert patched["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {"path": "capabilities.yaml"} in kustomization["patches"]


def test_kubeadms_container_is_not_privileged(container: Any, pod: Any) -> None:
    document = yaml.safe_load(read("deploy/overlays/kubeadm/daemonset.yaml"))
    template = document["spec"]["template"]["spec"]
    (patched,) = template["containers"]
    wanted = container["securityContext"]["capabilities"]
    assert patched["securityContext"] == {
        "privileged": False,  # kubeadm sets true, and omitted fields keep their value
        "allowPrivilegeEscalation": False,
        "capabilities": wanted,
    }
    (prepare,), (ours,) = template["initContainers"], pod["initContainers"]
    assert prepare["securityContext"] == ours["securityContext"]
    assert prepare["command"][-1].splitlines()[-1] == ours["command"][-1].splitlines()[-1].replace(
        "/etc/svcproxy", "/var/lib/kube-proxy"
    )


def test_mounts(pod: Any, container: Any) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (prepare,) = pod["initContainers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    mounts |= {mount["mountPath"]: mount for mount in prepare["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    # Volumes without subPath would be updated in running pods, on all nodes at the same time
    assert all("subPath" in m for m in mounts.values() if m["name"] == "configuration")
    lock = volumes[mounts["/run/xtables.lock"]["name"]]
    assert lock["hostPath"] == {"path": "/run/xtables.lock", "type": "FileOrCreate"}
    assert not mounts["/run/xtables.lock"].get("readOnly")
    assert mounts["/lib/modules"]["readOnly"] is True
    assert volumes[mounts["/lib/modules"]["name"]]["hostPath"] == {"path": "/lib/modules"}


def test_the_admin_socket_can_be_made_and_is_seen_in_the_pod_only(pod: Any, container: Any) -> None:
    """The root file system is read-only, and another pod of the node must not see it."""
    folder = str(Path(Config().admin_socket).parent)
    (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == folder)
    assert not mount.get("readOnly")
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    assert set(volume) == {"name", "emptyDir"}


def test_every_container_requests_resources_and_runs_this_version(pod: Any, container: Any) -> None:
    for one in [container, *pod["initContainers"]]:
        assert set(one["resources"]["requests"]) == {"cpu", "memory"}
        assert one["image"] == f"svcproxy:{__version__}"


def test_dockerfile_installs_only_what_is_locked() -> None:
    installs = re.findall(r"pip .*?install (.*?)(?:&&|$)", unwrapped("Dockerfile"), re.MULTILINE)
    assert len(installs) == 3
    for options in installs:
        assert (
            "--require-hashes --only-binary :all:" in options or "--no-deps --no-index" in options
        )


def test_the_build_lock_agrees_with_the_development_lock() -> None:
    pinned = re.findall(r"^\S+==\S+", read("requirements/build.lock"), re.MULTILINE)
    assert pinned
    assert set(pinned) <= set(re.findall(r"^\S+==\S+", read("requirements/dev.lock"), re.MULTILINE))


def unwrapped(name: str) -> str:
    """Return a file's text with continuation lines joined."""
    return re.sub(r"\s*\\\n\s*", " ", read(name))


def test_dockerignore_includes_what_the_dockerfile_copies() -> None:
    copied = {
        name.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.MULTILINE)
        for name in line.split()
    }
    allowed = re.findall(r"^!(.+?)/?$", read(".dockerignore"), re.MULTILINE)
    assert copied == set(allowed)
    assert all((ROOT / name).exists() for name in copied)


def test_pre_commit_runs_what_ci_runs() -> None:
    (repo,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repo["repo"] == "local"
    assert [(hook["entry"], hook["language"]) for hook in repo["hooks"]] == [
        ("./dev lint", "system")
    ]
