"""What is removed from iptables' tables, and what is not."""

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


def test_kubelets_chains_are_nobodys_leftovers() -> None:
    assert not any(stale_chains(parse(KUBELET)).values())


def test_chains_and_the_jumps_to_them_go() -> None:
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


@pytest.mark.parametrize("user", ChainOwner)
def test_chains_in_use_stay(user: ChainOwner) -> None:
    text = "*filter\n:KUBE-PROXY-FIREWALL -\n:KUBE-FORWARD -\n*nat\n:KUBE-SERVICES -\n"
    assert not any(stale_chains(parse(text), user).values())


def test_what_only_the_other_mode_has_goes() -> None:
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


def test_services_chains_belong_to_iptables_mode() -> None:
    text = "*nat\n:KUBE-SVC-A -\n:KUBE-SEP-B -\n"
    assert not stale_chains(parse(text), ChainOwner.IPTABLES)["nat"]
    assert stale_chains(parse(text), ChainOwner.IPVS)["nat"].delete == ["KUBE-SEP-B", "KUBE-SVC-A"]


@pytest.mark.parametrize("user", [None, *ChainOwner])
def test_canaries_go(user: ChainOwner | None) -> None:
    text = "".join(f"*{table}\n:KUBE-PROXY-CANARY -\n" for table in ("mangle", "nat", "filter"))
    plans = stale_chains(parse(text), user)
    assert all(plans[t].delete == ["KUBE-PROXY-CANARY"] for t in ("mangle", "nat", "filter"))


def test_a_chain_that_others_lead_to_is_emptied_but_stays() -> None:
    """Deleting it would fail, and with it the whole transaction."""
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
    emptied = text.replace("-A KUBE-SERVICES -g KUBE-SVC-A\n", "").replace(":KUBE-SVC-A -\n", "")
    assert not stale_chains(parse(emptied))["nat"], "the second time there is nothing to do"


def test_very_many_chains_go_in_pieces_that_each_can_be_carried_out() -> None:
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


def test_few_chains_go_in_one_transaction() -> None:
    assert len(list(removal_inputs(TablePlan(delete=["KUBE-SVC-A"]), "nat", in_chunks=True))) == 1
    assert not list(removal_inputs(TablePlan(), "nat", in_chunks=True))


def test_a_takeover_deletes_very_many_chains_after_the_new_ones_serve() -> None:
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
    serves = [number for number, text in enumerate(texts) if "-A KUBE-SERVICES" in text]
    assert len(serves) == 1
    for number, text in enumerate(texts):
        tables.restore(text)
        present = tables.tables["nat"].keys()
        assert set(old) <= present or number > serves[0]
        assert set(new) <= present or number < serves[0]
    assert not set(old) & tables.tables["nat"].keys()
