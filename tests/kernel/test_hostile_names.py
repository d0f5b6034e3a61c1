"""Names that contain iptables rules, through the whole daemon: they are refused when parsed.

They are in a folder of manifests, which no API server has validated. ``test_hostile_texts`` tests
the renderers with such names, behind the parser.
"""

import json

import pytest

from testbed import manifests as m
from testbed.manifests import Object
from tests.kernel.conftest import Stage, assert_refused, at, servers

pytestmark = [pytest.mark.kernel, pytest.mark.iptables_only]

# Each ends a quoted comment, and the second and third continue with a rule of their own.
NAMES = {
    "quote": 'x"',
    "rule": 'x" -j REJECT\n-A INPUT -p tcp --dport 4444 -j DROP\n-A KUBE-SERVICES --comment "x',
    "commit": 'x" -j REJECT\nCOMMIT\n*filter\n-A FORWARD -j DROP\nCOMMIT\n#"',
    "backslash": "x\\",
}


def hostile(stage: Stage, place: str, text: str) -> Object:
    """A Service without endpoints, which would get a rule of the filter table with its name."""
    service = m.service("hostile", [stage.address(4)], [m.port(80, name="http")])
    if place == "port":
        service["spec"]["ports"][0]["name"] = text
    else:
        service["metadata"][place] = text
    return service


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("place", ["name", "namespace", "port"])
@pytest.mark.behaviour("Conflicts and invalid objects: Names that contain rules")
def test_a_name_cannot_become_a_rule(stage: Stage, place: str, text: str) -> None:
    served = stage.offer(4, [at(stage.here[0], 4)])
    refused = stage.offer(4)
    before = filter_rules(stage)
    logged = len(stage.daemon.logs())
    stage.folder.write("hostile.json", json.dumps(hostile(stage, place, text)))
    try:
        # Later changes are programmed; one bad line would make every iptables-restore fail.
        stage.sync()
        assert filter_rules(stage) == before
        assert servers(stage.client, "tcp", served.vip, 80, n=3) == {"pod1a"}
        assert_refused(stage.client, "tcp", refused.vip, 80)
        lines = [line for line in stage.daemon.logs()[logged:] if "object.skipped" in line]
        assert len(lines) == 1
        assert "hostile.json" in lines[0]
        assert "is not a DNS label" in lines[0]
    finally:
        (stage.folder.path / "hostile.json").unlink()
        stage.sync()


def filter_rules(stage: Stage) -> str:
    return stage.iptables(4, "-t", "filter", "-S")
