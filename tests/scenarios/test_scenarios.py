"""Compares each scenario's output with the expected one, from scratch and incrementally."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from svcproxy.config import Config
from svcproxy.kube.core.decoding import decode_object
from svcproxy.kube.core.parse import parse_object
from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import ApiObject, Node, Service
from svcproxy.modes import all_modes
from tests.scenarios.modes import (
    MODES,
    NODE_OBJECT,
    Made,
    config_of,
    from_scratch,
    incrementally,
    settings_of,
    state_of,
    sysctl_lines,
)
from tests.scenarios.output import port_lines, rule_lines, trace_lines
from tests.scenarios.scenario import FOLDER, Scenario, dump, load

FILES = sorted(FOLDER.glob("*.txt"))
SECTIONS = {
    ("iptables", IPFamily.IPV4): "iptables",
    ("iptables", IPFamily.IPV6): "ip6tables",
    ("nftables", IPFamily.IPV4): "nftables",
    ("nftables", IPFamily.IPV6): "nftables ip6",
    ("ipvs", IPFamily.IPV4): "ipvs",
    ("ipvs", IPFamily.IPV6): "ipvs ip6",
}

ANNOTATIONS = frozenset().union(*(mode.annotations for mode in all_modes()))


def objects_of(scenario: Scenario) -> list[ApiObject]:
    found = []
    for document in yaml.safe_load_all(scenario.sections.get("objects", "")):
        if document is not None:
            wire = decode_object(Kind(document["kind"]), json.dumps(document).encode())
            found.append(parse_object(wire, ANNOTATIONS))
    return [obj for obj in found if obj is not None]


def batches_of(objects: Sequence[ApiObject], *, services_first: bool) -> list[list[ApiObject]]:
    """The Node, then Services and the rest in the given order."""
    nodes: list[ApiObject] = [obj for obj in objects if isinstance(obj, Node)]
    services: list[ApiObject] = [obj for obj in objects if isinstance(obj, Service)]
    rest = [obj for obj in objects if obj not in nodes and obj not in services]
    later = [services, rest] if services_first else [rest, services]
    return [nodes or [NODE_OBJECT], *later]


class Outcome:
    """The output of one scenario, and differences between the ways to compute it."""

    def __init__(self, scenario: Scenario) -> None:
        self.outputs: dict[str, str] = {}
        self.differences: list[str] = []
        self._scenario = scenario
        self._objects = objects_of(scenario)
        services = [obj for obj in self._objects if isinstance(obj, Service)]
        addresses = [address for each in services for address in each.cluster_ips]
        self._is_ipv6_only = bool(addresses) and all(":" in address for address in addresses)
        made: dict[tuple[str, bool], Made] = {}
        ports: list[str] = []
        for mode in MODES:
            for family in IPFamily:
                self._make(mode, family, made, ports)
        traces = "\n".join(trace_lines(scenario.packets, made))
        self.outputs = {"service ports": "\n".join(ports), **self.outputs, "traces": traces}

    def _make(
        self, mode: str, family: IPFamily, made: dict[tuple[str, bool], Made], ports: list[str]
    ) -> None:
        config = config_of(mode, self._scenario.flags)
        order = batches_of(self._objects, services_first=True)
        state = state_of(config, family, order)
        if mode == MODES[0]:
            ports += port_lines(state.ports)
        missing = self._scenario.missing_features
        settings = settings_of(config, state, mode, family, missing)
        rules = from_scratch(mode, family, state, settings)
        made[mode, family is IPFamily.IPV6] = rules
        if not state.ports and (family is IPFamily.IPV6 or self._is_ipv6_only):
            return
        text = self._text(rules)
        parameters = self._parameters(mode, config) if family is IPFamily.IPV4 else []
        self.outputs[SECTIONS[mode, family]] = "\n".join([*parameters, text])
        for services_first in (True, False):
            batches = batches_of(self._objects, services_first=services_first)
            again = self._text(incrementally(mode, family, settings, batches, config))
            if again != text:
                which = "Services first" if services_first else "slices first"
                title = f"{mode} {family}, incrementally, {which}"
                self.differences.append(diff(text, again, "from scratch", title))

    def _parameters(self, mode: str, config: Config) -> list[str]:
        found = sysctl_lines(mode, config)
        if "shared" in self._scenario.shown:
            return found
        return [line for line in found if line not in sysctl_lines(mode, config_of(mode, ()))]

    def _text(self, made: Made) -> str:
        config = config_of(made.mode, ())
        state = state_of(config, made.family, [[NODE_OBJECT]])
        settings = settings_of(config, state, made.mode, made.family)
        base = from_scratch(made.mode, made.family, state, settings)
        return "\n".join(rule_lines(made, base, self._scenario.shown))


def diff(old: str, new: str, of: str, to: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), of, to, n=2, lineterm="")
    return "\n".join(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, *, regenerate: bool) -> None:
    scenario = load(path)
    outcome = Outcome(scenario)
    assert not outcome.differences, "\n\n".join(outcome.differences)
    text, expected = dump(scenario, outcome.outputs), path.read_text()
    if regenerate:
        path.write_text(text)
    elif text != expected:
        pytest.fail(diff(expected, text, "expected", "computed"), pytrace=False)


def test_each_scenario_names_the_behaviour_that_it_specifies() -> None:
    for path in FILES:
        header = load(path).header.splitlines()
        assert all(line.startswith("#") for line in header), path
        assert any("behaviour.md" in line for line in header), path
