"""The image: its Dockerfile is built, and the daemon of the result serves as it would in a pod."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from svcproxy import __version__
from testbed import image, manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.image import Image
from testbed.waiting import eventually

# The build takes more than a minute, on busy machines several; the first test pays for it.
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

DEPLOY = Path(__file__).parents[2] / "deploy"
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


@pytest.fixture(params=["iptables", "nftables"])
def daemon(
    request: pytest.FixtureRequest, built: Image, cluster: Cluster, tmp_path: Path
) -> Iterator[Daemon]:
    """The daemon of the image, with the capabilities and the mounts that the DaemonSet grants."""
    documents = yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text(encoding="utf-8"))
    pod = next(d for d in documents if d["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    granted = pod["containers"][0]["securityContext"]["capabilities"]["add"]
    made = Daemon(
        cluster.nodes[0], flags={"proxy-mode": request.param, "manifests": "/run/manifests"}
    )
    folders = {tmp_path: "/run/manifests"}
    made.program = [*built.enter(capabilities=granted, folders=folders), NAMES[1]]
    with made:
        yield made


def test_the_daemon_of_the_image_serves(cluster: Cluster, daemon: Daemon, tmp_path: Path) -> None:
    addresses = ["10.96.0.10", "fd00:10:96::10"]
    web = manifests.service("web", addresses, [manifests.port(80, target=8080)])
    pods = cluster.nodes[0].pods
    slices = [manifests.endpoint_slice(web, [pod.ip(family) for pod in pods]) for family in (4, 6)]
    manifests.ManifestFolder(tmp_path).put(web, *slices)

    def served(address: str) -> bool:
        return set(cluster.client.traffic.burst("tcp", address, 80, 30)) == {p.name for p in pods}

    for address in addresses:
        eventually(partial(served, address), address)
    assert daemon.stop() < 5
