"""Which chains and jumps clean-up removes from iptables tables."""

import itertools

import pytest

from svcproxy.backends.iptables.core.cleanup import ChainOwner, removal_inputs, stale_chains
from svcproxy.backends.iptables.core.plan import Plan
from svcproxy.backends.iptables.core.restore_inputs import CHUNK_CHAINS, restore_inputs
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.core.tableplan import TablePlan
from tests.fakes.restored_tables import RestoredTables

PORTALS = '-m comment --comment "kubernetes service portals"'
FIREWALL = '-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'
KUBELET = """
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
"""


def test_kubelets_chains_are_not_stale() -> None:
    assert not any(stale_chains(parse(KUBELET)).values())


def test_stale_chains_and_the_jumps_to_them_are_removed() -> None:
    plan = stale_chains(
        parse(
            f"*nat\n:PREROUTING -\n:KUBE-SERVICES -\n:KUBE-SVC-A -\n:OTHERS -\n"
            f"-A PREROUTING {PORTALS} -j KUBE-SERVICES\n"
            "-A PREROUTING -j OTHERS\n-A KUBE-SERVICES -j KUBE-SVC-A\nCOMMIT\n"
        )
    )["nat"]
    assert plan.remove == [("PREROUTING", f"{PORTALS} -j KUBE-SERVICES")]
    assert plan.delete == ["KUBE-SERVICES", "KUBE-SVC-A"]
    assert not plan.write


@pytest.mark.parametrize("owner", ChainOwner)
def test_chains_in_use_are_kept(owner: ChainOwner) -> None:
    text = "*filter\n:KUBE-PROXY-FIREWALL -\n:KUBE-FORWARD -\n*nat\n:KUBE-SERVICES -\n"
    assert not any(stale_chains(parse(text), owner).values())


def test_chains_of_the_other_mode_are_removed() -> None:
    text = (
        "*filter\n:INPUT -\n:KUBE-NODEPORTS -\n:KUBE-NODE-PORT -\n:KUBE-IPVS-FILTER -\n"
        ":KUBE-PROXY-FIREWALL -\n"
        f"-A INPUT {FIREWALL}\n"
    )
    plan = stale_chains(parse(text), ChainOwner.IPTABLES)["filter"]
    assert plan.delete == ["KUBE-IPVS-FILTER", "KUBE-NODE-PORT"]
    assert plan.remove == [("INPUT", FIREWALL)], "the other mode's jump to a chain that stays"
    plan = stale_chains(parse(text), ChainOwner.IPVS)["filter"]
    assert plan.delete == ["KUBE-NODEPORTS"]
    assert plan.remove == []


def test_per_service_chains_belong_to_iptables_mode() -> None:
    text = "*nat\n:KUBE-SVC-A -\n:KUBE-SEP-B -\n"
    assert not stale_chains(parse(text), ChainOwner.IPTABLES)["nat"]
    assert stale_chains(parse(text), ChainOwner.IPVS)["nat"].delete == ["KUBE-SEP-B", "KUBE-SVC-A"]


@pytest.mark.parametrize("owner", [None, *ChainOwner])
def test_canaries_are_removed(owner: ChainOwner | None) -> None:
    text = "".join(f"*{table}\n:KUBE-PROXY-CANARY -\n" for table in ("mangle", "nat", "filter"))
    plans = stale_chains(parse(text), owner)
    assert all(plans[t].delete == ["KUBE-PROXY-CANARY"] for t in ("mangle", "nat", "filter"))


def test_a_chain_that_another_program_jumps_to_is_flushed_and_kept() -> None:
    """Deleting it would make the whole transaction fail."""
    text = (
        "*nat\n:OUTPUT -\n:CNI-A -\n:KUBE-SERVICES -\n:KUBE-MARK-MASQ -\n:KUBE-SVC-A -\n"
        "-A CNI-A -j KUBE-MARK-MASQ\n"
        "-A OUTPUT -d 10.1.2.3/32 -j KUBE-SERVICES\n"
        "-A KUBE-SERVICES -g KUBE-SVC-A\n"
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"
    )
    plan = stale_chains(parse(text))["nat"]
    assert plan.write == {"KUBE-SERVICES": ()}
    assert plan.delete == ["KUBE-SVC-A"]
    assert plan.remove == []
    flushed = text.replace("-A KUBE-SERVICES -g KUBE-SVC-A\n", "").replace(":KUBE-SVC-A -\n", "")
    assert not stale_chains(parse(flushed))["nat"], "nothing is left to do"


def test_a_large_number_of_chains_is_removed_in_several_valid_inputs() -> None:
    names = [f"KUBE-SVC-{number:04}" for number in range(5 * CHUNK_CHAINS)]
    tables = RestoredTables()
    chains: dict[str, list[str]] = tables.tables["nat"]
    chains["KUBE-SERVICES"] = [f"-d 10.0.0.1 -j {name}" for name in names]
    chains |= {name: [f"-j {after}"] for name, after in itertools.pairwise(names)}
    chains[names[-1]] = []
    chains["PREROUTING"] = [f"{PORTALS} -j KUBE-SERVICES"]
    plan = stale_chains(tables.saved())["nat"]
    texts = list(removal_inputs(plan, "nat", in_chunks=True))
    assert len(texts) > 2 * 5
    for text in texts:
        assert text.count("\n") <= 2 * CHUNK_CHAINS + 2
        tables.restore(text)
    assert not any(chain.startswith("KUBE") for chain in tables.tables["nat"])


def test_few_chains_are_removed_in_one_transaction() -> None:
    assert len(list(removal_inputs(TablePlan(delete=["KUBE-SVC-A"]), "nat", in_chunks=True))) == 1
    assert not list(removal_inputs(TablePlan(), "nat", in_chunks=True))


def test_a_takeover_deletes_old_chains_after_the_switch_to_the_new_ones() -> None:
    old = [f"KUBE-SEP-{number:04}" for number in range(3 * CHUNK_CHAINS)]
    new = [f"KUBE-SVC-{number:04}" for number in range(3 * CHUNK_CHAINS)]
    tables = RestoredTables()
    chains: dict[str, list[str]] = tables.tables["nat"]
    chains["KUBE-SERVICES"] = [f"-d 10.0.0.1 -j {name}" for name in old]
    chains |= {name: ["-j RETURN"] for name in old}
    write = {"KUBE-SERVICES": tuple(f"-d 10.0.0.1 -j {name}" for name in new)}
    write |= dict.fromkeys(new, ("-j RETURN",))
    nat = TablePlan(write=write, delete=old, fresh=set(new))
    texts = list(restore_inputs(Plan({"nat": nat, "filter": TablePlan()}, {})))
    switch = [number for number, text in enumerate(texts) if "-A KUBE-SERVICES" in text]
    assert len(switch) == 1
    for number, text in enumerate(texts):
        tables.restore(text)
        present = tables.tables["nat"].keys()
        assert set(old) <= present or number > switch[0]
        assert set(new) <= present or number < switch[0]
    assert not set(old) & tables.tables["nat"].keys()
