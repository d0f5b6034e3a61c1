"""Packets through IPVS: schedulers, weights, persistence, and the hooks around it."""

from ipaddress import ip_address

import pytest

from svcproxy.explain.core.ipvs_print import address_lines, server_lines, set_lines
from svcproxy.explain.core.ipvs_rules import IpvsRuleset, RealServer, VirtualServer
from svcproxy.explain.core.packet import Host, Packet, State
from svcproxy.explain.core.trace import explain, trace

VIP = "10.96.0.10"
HOST = Host.of("192.168.50.1")
CLIENT = Packet("198.51.100.7", VIP, 80)
FROM_NODE = Packet(VIP, VIP, 80, interface="")


def ruleset(
    *real: RealServer,
    timeout: int = 0,
    tables: dict[str, dict[str, list[str]]] | None = None,
    sets: dict[str, frozenset[str]] | None = None,
) -> IpvsRuleset:
    server = VirtualServer("rr", real, timeout=timeout)
    bound = frozenset((ip_address(VIP).packed,))
    return IpvsRuleset(tables or {}, sets or {}, {("tcp", f"{VIP}:80"): server}, bound)


ONE, TWO = RealServer("10.244.1.1:8080"), RealServer("10.244.2.1:8080")


def test_weights_are_shares_and_weight_zero_takes_no_new_connections() -> None:
    rules = ruleset(ONE._replace(weight=3), TWO, RealServer("10.244.3.1:8080", 0))
    assert str(trace(CLIENT, rules)) == "3/4 10.244.1.1:8080, 1/4 10.244.2.1:8080"
    assert str(trace(CLIENT, rules, choose=0.6)) == "10.244.2.1:8080"


def test_without_a_usable_real_server_packets_are_rejected() -> None:
    assert str(trace(CLIENT, ruleset(ONE._replace(weight=0)))) == "reject"


def test_persistence_keeps_a_client_at_its_real_server() -> None:
    rules = ruleset(ONE, TWO, timeout=60)
    (first,) = trace(CLIENT, rules, choose=0.9).verdicts
    assert first.endpoint == TWO.target
    kept = rules.after(first.updates)
    assert str(trace(CLIENT, kept)) == TWO.target
    other = Packet("198.51.100.8", VIP, 80)
    assert len(trace(other, kept).verdicts) == 2
    gone = IpvsRuleset({}, {}, ruleset(ONE, timeout=60).servers, kept.bound)
    assert str(trace(CLIENT, gone.after(first.updates))) == ONE.target


def test_filters_see_packets_from_outside_before_ipvs_and_the_nodes_own_after_it() -> None:
    tables = {
        "filter": {
            "INPUT": [f"-s 198.51.100.0/24 -d {VIP}/32 -p tcp -m tcp --dport 80 -j DROP"],
            "OUTPUT": [f"-m ipvs --vproto 6 --vaddr {VIP} --vport 80 -j REJECT"],
        }
    }
    rules = ruleset(ONE, tables=tables)
    assert str(trace(CLIENT, rules, HOST)) == "drop"
    assert str(trace(FROM_NODE, rules, HOST)) == "reject"
    assert str(trace(Packet("10.244.1.9", VIP, 80), rules, HOST)) == "reject"


def test_masquerading_applies_to_what_ipvs_sends_on() -> None:
    mark = "-m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully"
    tables = {"nat": {"POSTROUTING": [mark], "PREROUTING": ["-j MARK --set-xmark 0x4000/0x4000"]}}
    rules = ruleset(ONE, tables=tables)
    found = trace(CLIENT, rules, HOST)
    assert str(found) == "10.244.1.1:8080 masqueraded"
    assert list(explain(found, rules)) == [
        "nat PREROUTING: -A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
        f"ipvs tcp {VIP}:80: TCP  {VIP}:80 rr",
        f"nat POSTROUTING: -A POSTROUTING {mark}",
        "10.244.1.1:8080 masqueraded",
    ]


def test_a_real_server_on_the_node_itself_is_not_masqueraded() -> None:
    tables = {"nat": {"POSTROUTING": ["-j MASQUERADE"]}}
    rules = ruleset(RealServer("192.168.50.1:8080"), tables=tables)
    assert str(trace(CLIENT, rules, HOST)) == "192.168.50.1:8080"


def test_established_connections_are_not_scheduled_again() -> None:
    packet = Packet(
        "198.51.100.7", VIP, 80, state=State.ESTABLISHED, translated_to="10.244.9.9:8080"
    )
    assert str(trace(packet, ruleset(ONE), HOST)) == "10.244.9.9:8080"


@pytest.mark.parametrize(
    ("entries", "fields", "holds"),
    [
        ({"10.96.0.10,tcp:80"}, "dst,dst", True),
        ({"10.96.0.10,udp:80"}, "dst,dst", False),
        ({"198.51.100.7,tcp:80"}, "src,dst", True),
        ({"80"}, "dst", True),
        ({"81"}, "dst", False),
        ({"10.96.0.10"}, "dst", True),
        ({"10.96.0.10,tcp:80,198.51.100.7"}, "dst,dst,src", True),
        ({"10.96.0.10,tcp:80,198.51.100.0/28"}, "dst,dst,src", True),
        ({"10.96.0.10,tcp:80,198.51.100.16/28"}, "dst,dst,src", False),
        ({"10.96.0.10,tcp:81,198.51.100.0/28"}, "dst,dst,src", False),
        (set(), "dst,dst", False),
    ],
)
def test_sets_hold_packets_by_their_fields(entries: set[str], fields: str, holds: bool) -> None:  # noqa: FBT001
    tables = {"nat": {"PREROUTING": [f"-m set --match-set S {fields} -j DROP"]}}
    rules = ruleset(ONE, tables=tables, sets={"S": frozenset(entries)})
    assert str(trace(CLIENT, rules, HOST)) == ("drop" if holds else ONE.target)


def test_it_is_printed_as_the_tools_print_it() -> None:
    rules = ruleset(TWO, ONE, timeout=90, sets={"B": frozenset(("2", "1")), "A": frozenset("3")})
    assert list(server_lines(rules)) == [
        f"TCP  {VIP}:80 rr persistent 90",
        "  -> 10.244.1.1:8080 Masq 1 0 0",
        "  -> 10.244.2.1:8080 Masq 1 0 0",
    ]
    assert list(address_lines(rules)) == [f"ip address add {VIP} dev kube-ipvs0"]
    assert list(set_lines(rules.rules.sets)) == ["add A 3", "add B 1", "add B 2"]
