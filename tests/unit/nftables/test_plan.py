"""The operations of a change do not depend on the number of other Services."""

import copy
import itertools

import pytest

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort, Verdict
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.nf_tables.datatypes import PORT
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, ChainSpec, Hook, SetSpec
from tests.unit.nftables.fake_kernel import FakeSet, FakeTable
from tests.unit.nftables.services import BALANCER, CLIENT, POD, VIP, Bench, options, service_port

V4 = IPFamily.IPV4


def many(count: int) -> list[ServicePort]:
    return [
        service_port(V4, (1, 2, 3), name=f"other{n}", vip=f"10.97.{n // 250}.{n % 250 + 1}")
        for n in range(count)
    ]


@pytest.fixture(params=[0, 300])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A Service ``web`` with three endpoints, alone and among 300 others."""
    return Bench(options(V4), service_port(V4), *many(int(request.param)))


def test_a_changed_endpoint_is_one_element(bench: Bench) -> None:
    # Endpoint 5 is not on this node: no hairpin.
    one = {"element_added": 1, "element_deleted": 1}
    assert bench.change(service_port(V4, (5, 2, 3))) == one
    assert bench.change(service_port(V4, (2, 3, 7))) == one


def test_the_order_of_endpoints_does_not_matter(bench: Bench) -> None:
    assert bench.change(service_port(V4, (3, 1, 2))) == {}


def test_a_new_length_adds_a_tier(bench: Bench) -> None:
    assert bench.change(service_port(V4, (1, 2, 3, 5))) == {
        "set_added": 1,
        "chain_added": 1,
        "chain_flushed": 1,
        # The rule of the tier, the rules that jump to tiers, and the head rule of the first stage.
        "rule_added": 1 + len(bench.kernel.table.rules["all-tiers"]) + 1,
        "element_added": 4,
    } | (
        {"element_deleted": 3}
        if "all3" in bench.kernel.table.sets
        else {"set_deleted": 1, "chain_deleted": 1}
    )


@pytest.mark.parametrize(
    "changed",
    [
        service_port(V4, (1, 2)),
        service_port(V4, (1, 2, 3, 5)),
        service_port(V4, (1, 2, 3), seconds=60),
        service_port(V4, (1, 2, 3, 5), seconds=60),
        service_port(V4, (1, 2, 3), external=True),
        service_port(V4, (1, 2, 3), external=True, ranges=(f"{CLIENT[V4]}0/24",)),
    ],
    ids=["shorter", "longer", "sticky", "longer and sticky", "outside", "guarded"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["change", "comparison"])
def test_packets_in_flight_are_served(bench: Bench, changed: ServicePort, *, whole: bool) -> None:
    """They traverse the rules from before a transaction, with the elements from after it."""
    kernel = bench.kernel
    balancer = service_port(V4, (1, 2, 3), external=True, ranges=("198.51.96.0/21",))
    bench.change(balancer)
    targets = [VIP[V4], BALANCER[V4]] if len(changed.frontends) > 1 else [VIP[V4]]
    kernel.states = [copy.deepcopy(kernel.table)]
    if whole:
        desired = Desired({**bench.planner.ports, changed.name: changed}, bench.settings)
        kernel.apply(Planner(bench.settings).plan(desired, bench.settings, kernel.observed()))
    else:
        bench.change(changed)
    for before, after in itertools.pairwise(kernel.states):
        gone = {name: copy.copy(held) for name, held in before.sets.items()}
        for held in gone.values():
            held.elements = {}
        kernel.tables[TABLE] = FakeTable(
            before.handle, gone | after.sets, before.chains, before.rules
        )
        for target in targets:
            for chosen in (0.0, 0.5, 0.99):
                assert bench.reach(bench.client(1), target, 80, chosen).startswith(POD[V4])


def test_a_move_to_an_existing_tier_changes_elements_only() -> None:
    four = service_port(V4, (1, 2, 3, 5), name="four", vip="10.96.0.44")
    bench = Bench(options(V4), service_port(V4), four, *many(3))
    assert bench.change(service_port(V4, (1, 2, 3, 7))) == {
        "element_added": 4,
        "element_deleted": 3,
    }


def test_a_new_service_is_a_frontend_and_its_endpoints(bench: Bench) -> None:
    new = service_port(V4, (1, 3, 5), name="new", vip="10.96.0.99")
    assert bench.change(new) == {"element_added": 1 + 1 + 3}
    assert bench.remove(new) == {"element_deleted": 1 + 1 + 3}


def test_a_shared_element_stays_until_both_ports_are_deleted(bench: Bench) -> None:
    second = service_port(V4, (2,), name="web-second", verdict=Verdict.REJECT)
    frontend = second.frontends[0]
    moved = type(frontend)(frontend.kind, frontend.address, 81, local=False, verdict=Verdict.REJECT)
    second = ServicePort(second.name, (moved,), (), ())
    bench.change(second)
    addresses = bench.kernel.table.sets["cluster-addresses"].elements
    assert bytes((10, 96, 0, 10)) in addresses
    bench.remove(service_port(V4))
    assert bytes((10, 96, 0, 10)) in bench.kernel.table.sets["cluster-addresses"].elements
    bench.remove(second)
    assert bytes((10, 96, 0, 10)) not in bench.kernel.table.sets["cluster-addresses"].elements


def test_a_frontend_moves_to_another_service_in_one_transaction(bench: Bench) -> None:
    web, other = service_port(V4), service_port(V4, (5, 7, 9), name="other")
    plan = bench.planner.plan_changes({web.name: None, other.name: other})
    bench.kernel.apply(plan)
    assert bench.reach(bench.client(1), VIP[V4], 80) == bench.pod(5)


def test_an_unchanged_port_changes_nothing(bench: Bench) -> None:
    assert bench.change(service_port(V4)) == {}
    assert bench.planner.plan_changes({}).written == {}


def test_changed_settings_rewrite_only_the_affected_chains(bench: Bench) -> None:
    other = options(V4, masquerade_all=True)
    desired = Desired(bench.planner.ports, bench.settings)
    plan = bench.planner.plan(desired, other, bench.kernel.observed())
    assert [chain.name for chain in plan.rewrite] == ["services"]
    assert not plan.add
    assert not plan.remove


@pytest.mark.parametrize("what", ["set", "map", "chain"])
def test_a_foreign_table_is_replaced(bench: Bench, what: str) -> None:
    """Another version wrote it, or another program added a chain or set to it."""
    table, of = bench.kernel.table, text(1, "svcproxy")
    if what == "set":
        table.sets["foreign"] = FakeSet(of + SetSpec("foreign", (PORT,)).attributes())
    elif what == "map":
        table.sets["all3"].body = of + SetSpec("all3", (PORT,), (PORT,)).attributes()
    else:
        elsewhere = ChainSpec("nat-output", (), Hook("nat", 3, -90))
        table.chains["nat-output"] = of + elsewhere.attributes()
    desired = Desired(bench.planner.ports, bench.settings)
    plan = Planner(bench.settings).plan(desired, bench.settings, bench.kernel.observed())
    assert plan.delete_table
    assert plan.make_table
    bench.kernel.apply(plan)
    assert bench.reach(bench.client(1), VIP[V4], 80) == bench.pod(1)


def test_a_restart_keeps_the_numbers_of_endpoints(bench: Bench) -> None:
    bench.change(service_port(V4, (9, 2, 3)))
    bench.change(service_port(V4, (9, 2, 8)))
    ports = {port.name: port for port in (service_port(V4, (2, 8, 9)),)}
    others = {name: port for name, port in bench.planner.ports.items() if name not in ports}
    again = Planner(bench.settings)
    desired = Desired({**others, **ports}, bench.settings)
    assert not again.plan(desired, bench.settings, bench.kernel.observed())
    changed = service_port(V4, (2, 8, 11))
    assert again.plan_changes({changed.name: changed}).operations == {
        "element_added": 1,
        "element_deleted": 1,
    }


def test_a_restart_removes_unused_tiers(bench: Bench) -> None:
    bench.change(service_port(V4, (1, 2, 3, 5)))
    ports = dict(bench.planner.ports)
    ports[service_port(V4).name] = service_port(V4, (1, 2, 3))
    plan = Planner(bench.settings).plan(
        Desired(ports, bench.settings), bench.settings, bench.kernel.observed()
    )
    assert plan.delete_chains == plan.delete_sets == ["all4"]
    bench.kernel.apply(plan)
    assert "all4" not in bench.kernel.table.chains
