"""For random clusters and packets, the story agrees with the rules of every mode and family."""

from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.story import tell
from svcproxy.explain.core.story_check import disagreements
from svcproxy.explain.core.story_types import Question, Situation
from svcproxy.explain.core.trace import trace
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import ApiObject, Node, ServiceCIDR
from tests.examples import examples
from tests.property import strategies
from tests.scenarios.modes import MODES, config_of, from_scratch, settings_of, state_of
from tests.scenarios.output import ruleset_of
from tests.scenarios.scenario import NODE_ADDRESSES

HOST = Host.of(*NODE_ADDRESSES)

FLAGS = st.sampled_from(
    [
        (),
        (),
        ("--masquerade-all",),
        ("--cluster-cidr=",),
        ("--cluster-cidr=0.0.0.0/0,::/0",),
        ("--detect-local-mode=NodeCIDR",),
        ("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"),
        ("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cni"),
        ("--nodeport-addresses=primary",),
        ("--nodeport-addresses=203.0.113.0/24,127.0.0.0/8",),
        ("--nodeport-addresses=0.0.0.0/0,::/0",),
        ("--iptables-localhost-nodeports=false",),
        ("--feature-gates=AllowServiceExternalIPs=false",),
    ]
)
SENDERS = st.sampled_from(
    [
        ("cni0", "10.244.0.1", "fd00:10:244::1"),
        ("cni0", "10.244.0.2", "fd00:10:244::2"),
        ("eth0", "10.244.0.3", "fd00:10:244::3"),
        ("eth0", "198.51.100.7", "fd00:198::7"),
        ("eth0", "192.168.50.100", "fd00:192:168:50::100"),
        ("", *NODE_ADDRESSES),
    ]
)
DESTINATIONS = st.sampled_from(
    [
        *((f"10.96.0.{n}", f"fd00:10:96::{n}") for n in (0, 1, 2, 3, 4, 5, 9)),
        ("203.0.113.1", "fd00:203::1"),
        ("203.0.113.2", "fd00:203::2"),
        NODE_ADDRESSES,
        ("127.0.0.1", "::1"),
        ("192.0.2.1", "2001:db8::1"),
    ]
)
PORTS = st.sampled_from([80, 81, 30080, 30081, 31000, 443])
CIDRS = ServiceCIDR(NamespacedName("", "kubernetes"), ("10.96.0.0/16", "fd00:10:96::/112"))


@st.composite
def clusters(draw: st.DrawFn) -> list[ApiObject]:
    """Objects as an API server has them: no two Services have the same cluster IP."""
    services = draw(st.lists(strategies.services(), min_size=1, max_size=6))
    by_name = {each.name: each for each in services}
    taken: set[str] = set()
    found: list[ApiObject] = [CIDRS] if draw(st.booleans()) else []
    for service in by_name.values():
        if taken.isdisjoint(service.cluster_ips):
            taken.update(service.cluster_ips)
            found.append(service)
    found += draw(st.lists(strategies.endpoint_slices(), min_size=1, max_size=9))
    node = draw(strategies.nodes)
    return [
        *found,
        Node(node.name, node.zone, ("10.244.0.0/24", "fd00:10:244::/64"), node.addresses),
    ]


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    objects=clusters(),
    flags=FLAGS,
    family=st.sampled_from(list(IPFamily)),
    packets=st.lists(
        st.tuples(SENDERS, DESTINATIONS, PORTS, st.sampled_from(list(Protocol))),
        min_size=1,
        max_size=12,
    ),
)
def test_the_story_agrees_with_the_rules(
    mode: str,
    objects: list[ApiObject],
    flags: tuple[str, ...],
    family: IPFamily,
    packets: list[tuple[tuple[str, ...], tuple[str, str], int, Protocol]],
) -> None:
    six = family is IPFamily.IPV6
    config = config_of(mode, flags)
    state = state_of(config, family, [objects])
    own = settings_of(config, state, mode, family)
    rules = ruleset_of(from_scratch(mode, family, state, own))
    situation = Situation(mode, state.ports, own, HOST, config.detect_local_mode)
    for (interface, *sources), destinations, port, protocol in packets:
        source, destination = sources[six], destinations[six]
        if mode == "ipvs" and interface and destination == "127.0.0.1":
            # Rules for node ports with policy Local also match 127.0.0.0/8. Only a machine that
            # sends such packets on purpose gets there, and it gets what any node address serves.
            continue
        if not interface and rules.is_local(Host(), ip_address(destination).packed):
            source = destination
        question = Question(source, destination, port, protocol, interface)
        packet = Packet(source, destination, port, protocol.keyword, interface)
        story = tell(question, situation)
        traced = trace(packet, rules, HOST)
        assert not disagreements(story, traced), (
            question,
            story.ending,
            story.reason,
            story.policy,
            str(traced),
        )
