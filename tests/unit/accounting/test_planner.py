"""The accounting table: changes lead to the same elements as all Service ports at once."""

from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.planner import AccountingPlanner
from svcproxy.accounting.core.table import (
    Accounting,
    chains,
    element_key,
    frontend_of,
    port_elements,
    sets,
    unserved,
)
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import ElementsBySet
from svcproxy.netlink.core.nf_tables.transaction import Plan

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
ADDRESSES = ("10.96.0.1", "10.96.0.2", "")
NAMES = tuple(ServicePortName("default", name, "", Protocol.TCP) for name in "abc")
Ports = Mapping[ServicePortName, ServicePort]


def port(name: ServicePortName, frontends: Mapping[str, Verdict], ranges: bool) -> ServicePort:  # noqa: FBT001
    kinds = {"": FrontendKind.NODE_PORT}
    made = tuple(
        Frontend(kinds.get(a, FrontendKind.LOAD_BALANCER), a, 80, local=False, verdict=verdict)
        for a, verdict in frontends.items()
    )
    return ServicePort(name, made, (), (), source_ranges=("192.0.2.0/24",) if ranges else ())


@st.composite
def states(draw: st.DrawFn) -> dict[ServicePortName, ServicePort]:
    """Service ports of which no two have the same frontend."""
    owners = {a: draw(st.sampled_from([*NAMES, None])) for a in ADDRESSES}
    verdicts = {a: draw(st.sampled_from(Verdict)) for a in ADDRESSES}
    found = {}
    for name in NAMES:
        own = {a: verdicts[a] for a, owner in owners.items() if owner == name}
        kept: bool = draw(st.booleans())
        ranges: bool = draw(st.booleans())
        if own or kept:
            found[name] = port(name, own, ranges)
    return found


def applied(table: ElementsBySet, plan: Plan) -> None:
    """Carry out a plan as the kernel does: it refuses absent and existing elements."""
    for name, keys in plan.remove.items():
        for key in keys:
            del table[name][key]
    for name, added in plan.add.items():
        members = table.setdefault(name, {})
        assert not members.keys() & added.keys()
        members.update(added)


def from_scratch(accounting: Accounting, ports: Ports) -> ElementsBySet:
    plan = AccountingPlanner(accounting, Settings(V4)).plan(ports, TableDump())
    assert plan.make_table
    return {name: dict(found) for name, found in plan.add.items()}


@given(st.lists(states(), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_changes_lead_to_the_same_table_as_a_new_one(
    history: list[dict[ServicePortName, ServicePort]],
    connections: bool,  # noqa: FBT001
    outside: bool,  # noqa: FBT001
) -> None:
    accounting = Accounting(connections=connections, outside=outside)
    planner = AccountingPlanner(accounting, Settings(V4))
    table = from_scratch(accounting, history[0])
    planner.plan(history[0], TableDump())
    for before, now in pairwise(history):
        names = [n for n in before.keys() | now.keys() if before.get(n) != now.get(n)]
        applied(table, planner.plan_changes({name: now.get(name) for name in names}))
        assert {n: found for n, found in table.items() if found} == from_scratch(accounting, now)
        assert planner.sizes == {n: len(table.get(n, {})) for n in sets(accounting, V4)}


def test_an_unchanged_frontend_keeps_counting() -> None:
    accounting = Accounting(connections=True)
    planner = AccountingPlanner(accounting, Settings(V4))
    first = port(NAMES[0], {"10.96.0.1": Verdict.FORWARD}, ranges=False)
    planner.plan({NAMES[0]: first}, TableDump())
    more = port(
        NAMES[0], {"10.96.0.1": Verdict.FORWARD, "10.96.0.2": Verdict.FORWARD}, ranges=False
    )
    plan = planner.plan_changes({NAMES[0]: more})
    assert not plan.remove
    assert {name: len(found) for name, found in plan.add.items()} == {"connections": 1}
    assert not planner.plan_changes({NAMES[0]: more})


def test_what_is_not_served_depends_on_verdict_ranges_and_mode() -> None:
    def why(verdict: Verdict, *, ranges: bool = False, outside: bool = True) -> str:
        about = port(NAMES[0], {"10.96.0.1": verdict}, ranges)
        return unserved(Accounting(outside=outside), about, about.frontends[0])

    assert why(Verdict.FORWARD) == ""
    assert why(Verdict.REJECT) == "refused"
    assert why(Verdict.DROP) == "dropped"
    assert why(Verdict.FORWARD, ranges=True) == "outside the source ranges"
    assert why(Verdict.FORWARD, ranges=True, outside=False) == ""


def test_only_refusals_are_counted_unless_connections_are_asked_for() -> None:
    about = port(NAMES[0], {"10.96.0.1": Verdict.FORWARD, "": Verdict.REJECT}, ranges=False)
    assert set(port_elements(Accounting(), about)) == {"node-ports", "node-port-unserved"}
    assert set(chains(Accounting(), Settings(V4))) == {"unserved-prerouting", "unserved-output"}
    both = chains(Accounting(connections=True), Settings(V4))
    priorities = {name: chain.hook.priority for name, chain in both.items() if chain.hook}
    assert priorities["connections-output"] < -100 < priorities["unserved-output"]


def test_an_element_names_its_frontend() -> None:
    for key in (
        FrontendKey(V4, "10.96.0.1", 80, Protocol.TCP),
        FrontendKey(V4, "", 30080, Protocol.UDP),
        FrontendKey(V6, "fd00::1", 65535, Protocol.SCTP),
        FrontendKey(V6, "", 1, Protocol.TCP),
    ):
        prefix, packed = element_key(key)
        assert bool(prefix) is not bool(key.address)
        assert frontend_of(key.family, packed) == key
    assert frontend_of(V4, b"\0" * 8) is None
    assert frontend_of(V4, b"") is None
    assert frontend_of(V4, b"\6" * 20) is None
