"""The output of ``svcproxy show`` in ``docs/commands.md`` is real."""

import re
from pathlib import Path

import msgspec
import pytest

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.explain.core.documents import ConnectionCounts
from svcproxy.explain.core.node_summary import KernelComparison
from svcproxy.explain.core.service_detail import KernelObjects, service_detail
from svcproxy.explain.core.service_list import Observed, service_list
from svcproxy.explain.kernel_state import kernel_objects
from svcproxy.explain.views import view_of_objects
from svcproxy.main import main
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from tests.scenarios.modes import NODE, config_of
from tests.scenarios.scenario import Scenario
from tests.scenarios.test_scenarios import objects_of
from tests.unit.commands.test_show import of_daemon, text_of

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
WEB = NamespacedName("default", "web")
OBJECTS = """
kind: Node
metadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}
---
kind: Service
metadata: {namespace: default, name: web}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10]
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}
---
kind: EndpointSlice
metadata: {namespace: default, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.2.3], nodeName: node2, hints: {forZones: [{name: a}]}}
- {addresses: [10.244.2.4], nodeName: node2, conditions: {ready: false, serving: false}}
- {addresses: [10.244.3.1], nodeName: node3, hints: {forZones: [{name: b}]}}
"""


def block(command: str) -> str:
    """The output of a command in the manual."""
    (found,) = re.findall(
        rf"^```\n\$ {re.escape(command)}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE
    )
    return str(found)


def test_the_output_in_the_manual_is_real() -> None:
    objects = objects_of(Scenario(ROOT, "", {"objects": OBJECTS}))
    view = of_daemon(view_of_objects(NODE, "nftables", config_of("nftables", ()), objects))
    assert view.status is not None
    since = {"default/web": {"10.244.2.4": view.status.now - 42.4}}
    status = msgspec.structs.replace(view.status, not_ready_since=since)
    view = msgspec.structs.replace(view, status=status)
    observed = Observed(
        dict.fromkeys(IPFamily, KernelComparison()),
        {
            (IPFamily.IPV4, address, 80, Protocol.TCP): counts
            for address, counts in (
                ("10.96.0.10", ConnectionCounts(new_per_second=1.2, open=14)),
                ("203.0.113.9", ConnectionCounts(new_per_second=0.0, open=0)),
            )
        },
    )
    assert text_of(service_list(view, observed)) == block("svcproxy show")
    objects_by_port = {
        key: KernelObjects(found.lines, "kernel")
        for key, found in kernel_objects(view, WEB).items()
    }
    detail = service_detail(view, WEB, observed, objects_by_port)
    assert text_of(detail) == block("svcproxy show default/web")


def test_the_error_in_the_manual_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    source = ("--manifests", str(ROOT / "examples"), "--", f"--hostname-override={NODE}")
    assert main(["show", "default/wbe", *source]) == ExitCode.NOT_FOUND
    assert capsys.readouterr().err == block("svcproxy show default/wbe")
