"""The image: its Dockerfile is built, and the daemon of the result serves as it would in a pod."""

import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from svcproxy import __version__
from testbed import image, manifests
from testbed.apiserver.exchange import Behaviour
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster
from testbed.daemon import Daemon, default_flags
from testbed.image import Image
from testbed.waiting import eventually

# The build takes more than a minute, on busy machines several; the first test pays for it.
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TLS = ROOT / "tests/fakes/tls"
ADDRESSES = ("10.96.0.10", "fd00:10:96::10")
NAMES = ("/usr/local/bin/svcproxy", "/usr/local/bin/kube-proxy")


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[Image]:
    with image.built(tmp_path_factory.mktemp("image")) as made:
        record_testsuite_property("image_megabytes", round(made.megabytes()))
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=2) as made:
        made.serve(tcp=[8080])
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_under_both_names(built: Image, name: str) -> None:
    version = built.run(name, "--version")
    assert (version.returncode, version.stdout) == (0, f"svcproxy {__version__}\n"), version.stderr
    assert "--proxy-mode" in built.run(name, "--help").stdout


def test_nothing_is_in_it_that_builds_software(built: Image) -> None:
    programs = {path.name for path in built.tree.glob("usr/bin/*")}
    assert not programs & {"gcc", "cc", "g++", "make", "ld", "as", "pip", "pip3"}
    assert not list(built.tree.glob("opt/svcproxy/**/pip"))


def test_the_daemon_need_not_write_byte_code(built: Image) -> None:
    sources = list(built.tree.glob("opt/svcproxy/lib/python3*/site-packages/svcproxy/**/*.py"))
    cached = {path.name.split(".")[0] for path in built.tree.glob("opt/**/svcproxy/**/*.pyc")}
    assert {path.stem for path in sources} - {"__main__"} <= cached


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod of the DaemonSet."""
    documents = yaml.safe_load_all((ROOT / "deploy/daemonset.yaml").read_text(encoding="utf-8"))
    daemon_set = next(document for document in documents if document["kind"] == "DaemonSet")
    found: dict[str, Any] = daemon_set["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def granted(pod: dict[str, Any]) -> list[str]:
    """The capabilities that the DaemonSet grants."""
    added: list[str] = pod["containers"][0]["securityContext"]["capabilities"]["add"]
    return added


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_the_init_container_does_its_work(
    built: Image, cluster: Cluster, pod: dict[str, Any], granted: list[str], mode: str
) -> None:
    (prepare,) = pod["initContainers"]
    folders = {ROOT / "deploy/overlays" / mode: "/etc/svcproxy"}
    enter = built.enter(capabilities=granted, folders=folders)
    done = cluster.nodes[0].netns.run(*enter, *prepare["command"], check=False)
    assert done.returncode == 0, done.stderr
    assert "prepared" in done.stderr + done.stdout
    assert "not found" not in done.stderr


def web(cluster: Cluster) -> list[manifests.Object]:
    """A Service of both families whose endpoints are all pods."""
    service = manifests.service("web", ADDRESSES, [manifests.port(80, target=8080)])
    pods = cluster.nodes[0].pods
    slices = [manifests.endpoint_slice(service, [p.ip(family) for p in pods]) for family in (4, 6)]
    return [service, *slices]


def assert_served(cluster: Cluster) -> None:
    everyone = {pod.name for pod in cluster.nodes[0].pods}
    for address in ADDRESSES:
        eventually(
            lambda address=address: (  # type: ignore[misc]
                set(cluster.client.traffic.burst("tcp", address, 80, 30)) == everyone
            ),
            address,
        )


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_the_daemon_of_the_image_serves(
    built: Image, cluster: Cluster, granted: list[str], tmp_path: Path, mode: str
) -> None:
    manifests.ManifestFolder(tmp_path).put(*web(cluster))
    daemon = Daemon(cluster.nodes[0], flags={"proxy-mode": mode, "manifests": "/run/manifests"})
    folders = {tmp_path: "/run/manifests"}
    daemon.program = [*built.enter(capabilities=granted, folders=folders), NAMES[0]]
    with daemon:
        assert_served(cluster)
        assert daemon.stop() < 5


@pytest.fixture
def api(cluster: Cluster) -> Iterator[FakeApiServer]:
    """An API server on the node, with TLS, that asks for a token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    server = FakeApiServer(tls=context, behaviour=Behaviour(token="of-the-service-account"))
    cluster.nodes[0].netns.call(server.start)
    yield server
    server.stop()


def test_kubeadms_daemonset_runs_with_another_image_and_nothing_else(
    built: Image, cluster: Cluster, granted: list[str], tmp_path: Path, api: FakeApiServer
) -> None:
    configuration, account = tmp_path / "configuration", tmp_path / "account"
    configuration.mkdir()
    account.mkdir()
    # What kubeadm puts into its ConfigMap, and the kubelet into every pod
    stock = ROOT / "tests/unit/config/files/kubeadm.yaml"
    shutil.copy(stock, configuration / "config.conf")
    (map_,) = yaml.safe_load_all((ROOT / "deploy/api-server.yaml").read_text(encoding="utf-8"))
    kubeconfig = map_["data"]["kubeconfig.conf"]
    place = "https://REPLACE-WITH-API-SERVER-ADDRESS:6443"
    assert place in kubeconfig
    (configuration / "kubeconfig.conf").write_text(kubeconfig.replace(place, api.url))
    shutil.copy(TLS / "ca.pem", account / "ca.crt")
    (account / "token").write_text("of-the-service-account\n")
    api.put_many([*web(cluster), manifests.node(cluster.nodes[0].name)])

    daemon = Daemon(cluster.nodes[0], flags=dict.fromkeys(default_flags(""), None))
    folders = {
        configuration: "/var/lib/kube-proxy",
        account: "/run/secrets/kubernetes.io/serviceaccount",
    }
    daemon.program = [
        *built.enter(capabilities=granted, folders=folders),
        NAMES[1],
        "--config=/var/lib/kube-proxy/config.conf",
        f"--hostname-override={cluster.nodes[0].name}",
    ]
    with daemon:
        assert_served(cluster)
        api.outage()
        assert_served(cluster)
        assert daemon.healthz("/livez")[0] == 200
