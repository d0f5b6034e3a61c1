"""The story of each packet of the scenarios agrees with the rules of each mode and family."""

from ipaddress import ip_address

import pytest
from msgspec import structs

from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.story import tell
from svcproxy.explain.core.story_check import disagreements
from svcproxy.explain.core.story_types import Question, Situation
from svcproxy.explain.core.trace import trace
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, Service, ServicePortSpec, SliceEndpoint, SlicePort
from tests.scenarios.modes import MODES, NODE_OBJECT, config_of, from_scratch, settings_of, state_of
from tests.scenarios.output import ruleset_of
from tests.scenarios.scenario import FOLDER, NODE_ADDRESSES, Scenario, load
from tests.scenarios.test_scenarios import batches_of, objects_of

HOST = Host.of(*NODE_ADDRESSES)
SCENARIOS = [load(path) for path in sorted(FOLDER.glob("*.txt"))]


def check(scenario: Scenario, mode: str, family: IPFamily) -> list[str]:
    """Compare all packets of a family in one mode; return what differs."""
    config = config_of(mode, scenario.flags)
    state = state_of(config, family, batches_of(objects_of(scenario), services_first=True))
    settings = settings_of(config, state, mode, family, scenario.missing_features)
    rules = ruleset_of(from_scratch(mode, family, state, settings))
    situation = Situation(mode, state.ports, settings, HOST, config.detect_local_mode)
    found = []
    for sent in scenario.packets:
        packet = sent.packet
        if (":" in packet.destination) is not (family is IPFamily.IPV6):
            continue
        destination = ip_address(packet.destination)
        own = rules.is_local(Host(), destination.packed) and not destination.is_loopback
        source = packet.destination if sent.sender == "node" and own else packet.source
        question = Question(
            source,
            packet.destination,
            packet.port,
            Protocol(packet.protocol.upper()),
            packet.interface,
        )
        story = tell(question, situation)
        traced = trace(structs.replace(packet, source=source), rules, HOST)
        found += [
            f"{sent.text}: {story.ending} {story.reason}: {text}"
            for text in disagreements(story, traced)
        ]
    return found


@pytest.mark.parametrize("family", list(IPFamily))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda found: found.path.stem)
def test_the_story_agrees_with_the_rules(scenario: Scenario, mode: str, family: IPFamily) -> None:
    assert check(scenario, mode, family) == []


FAR = "10.244.2.3"


@pytest.mark.parametrize("mode", MODES)
def test_an_endpoint_of_another_node_that_comes_through_this_one(mode: str) -> None:
    """Only iptables mode masquerades it; its own node would not send it here."""
    name = NamespacedName("default", "web")
    ports = (ServicePortSpec("", Protocol.TCP, 80, 0),)
    service = Service(name, ports, ("10.96.0.10",))
    endpoints = (SliceEndpoint(FAR, node_name="node2"),)
    slices = EndpointSlice(
        NamespacedName("default", "web-1"),
        name,
        IPFamily.IPV4,
        (SlicePort("", Protocol.TCP, 8080),),
        endpoints,
    )
    config = config_of(mode, ())
    state = state_of(config, IPFamily.IPV4, [[NODE_OBJECT, service, slices]])
    settings = settings_of(config, state, mode, IPFamily.IPV4)
    rules = ruleset_of(from_scratch(mode, IPFamily.IPV4, state, settings))
    situation = Situation(mode, state.ports, settings, HOST)
    story = tell(Question(FAR, "10.96.0.10", 80, Protocol.TCP, "eth0"), situation)
    assert [each.masqueraded for each in story.candidates] == [mode == "iptables"]
    assert disagreements(story, trace(Packet(FAR, "10.96.0.10", 80), rules, HOST)) == ()
