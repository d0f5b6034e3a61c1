"""``svcproxy render`` on manifests and on the output of kubectl."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.main import main
from testbed import manifests as m

EXAMPLES = Path(__file__).parents[3] / "examples"
FLAGS = ("--", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56")


def render(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["render", *map(str, arguments)]) == ExitCode.OK
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], code: ExitCode, *arguments: object) -> str:
    assert main(["render", *map(str, arguments)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def examples() -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.yaml"))]
    return [obj for text in texts for obj in yaml.safe_load_all(text)]


def as_list(folder: Path, objects: list[dict[str, Any]]) -> Path:
    file = folder / "objects.json"
    file.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": objects}))
    return file


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_objects_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    expected = render(capsys, "--manifests", EXAMPLES, "--mode", "all", *FLAGS)
    objects = examples()
    random.Random(seed).shuffle(objects)
    file = as_list(tmp_path, objects)
    assert render(capsys, "--objects", file, "--mode", "all", *FLAGS) == expected


def test_the_node_of_the_objects_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(render(capsys, "--manifests", EXAMPLES, "-o", "json", *FLAGS))
    assert document["node"] == "node1"
    file = as_list(tmp_path, [*examples(), m.node("node2", addresses=["192.168.50.2"])])
    line = error(capsys, ExitCode.USAGE, "--objects", file)
    assert "--node (node1, node2)" in line
    arguments = ("--objects", file, "--node=node2", "--mode=nftables", *FLAGS)
    text = render(capsys, *arguments)
    assert "ip daddr 192.168.50.2 fib" in text
    assert "192.168.50.1" not in text


def test_a_document_names_mode_family_and_tool_of_each_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--manifests", EXAMPLES, "--mode", "all", "-o", "json")
    document = json.loads(render(capsys, *arguments))
    assert (document["kind"], document["apiVersion"]) == ("Rendering", "svcproxy.io/v1")
    found = [(each["mode"], each["family"], each["tool"]) for each in document["files"]]
    assert found == [
        ("iptables", "IPv4", "iptables-restore"),
        ("iptables", "IPv6", "ip6tables-restore"),
        ("nftables", "IPv4", "nft"),
        ("nftables", "IPv6", "nft"),
        *(("ipvs", "IPv4", tool) for tool in ("ipset", "ipvsadm", "iptables-restore", "ip")),
        *(("ipvs", "IPv6", tool) for tool in ("ipset", "ipvsadm", "ip6tables-restore", "ip")),
    ]


def test_one_tool_gets_what_it_reads_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--manifests", EXAMPLES, "--mode=ipvs", "--family=IPv6", "--tool=ipvsadm")
    lines = render(capsys, *arguments).splitlines()
    assert lines[0] == "-A -t [fd00:10:96::80]:80 -s rr"
    assert all(line.startswith(("-A ", "-a ")) for line in lines)


def test_a_service_is_rendered_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = render(capsys, "--manifests", EXAMPLES, "--mode", "all", "default/web")
    assert "10.96.0.80" in text
    assert "10.96.0.10" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"),
    [
        (["--manifests", EXAMPLES, "default/nosuch"], ExitCode.NOT_FOUND, "default/nosuch"),
        (["--manifests", EXAMPLES, "web"], ExitCode.USAGE, "NAMESPACE/NAME"),
        (["--manifests", EXAMPLES, "--objects", "x"], ExitCode.USAGE, "choose one"),
        (["--objects", "/nonexistent"], ExitCode.USAGE, "name a file"),
        (["--objects", EXAMPLES / "node.yaml"], ExitCode.USAGE, "use kubectl get"),
        (["--manifests", EXAMPLES, "--", "--nosuch"], ExitCode.USAGE, "--nosuch"),
        (["--node", "a", "--socket=/nonexistent"], ExitCode.USAGE, "--manifests"),
        (["--socket=/nonexistent"], ExitCode.NO_DAEMON, "start svcproxy"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[object], code: ExitCode, remedy: str
) -> None:
    assert remedy in error(capsys, code, *arguments)


def test_malformed_objects_are_reported_and_the_others_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = m.service("bad", ["10.96.0.300"], [m.port(80)])
    file = as_list(tmp_path, [bad, *examples()])
    assert main(["render", "--objects", str(file), "-o", "json"]) == ExitCode.OK
    out, err = capsys.readouterr()
    (problem,) = json.loads(out)["problems"]
    assert "default/bad" in problem
    assert problem in err
