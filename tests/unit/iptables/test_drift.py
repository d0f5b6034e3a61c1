"""Which changes by other processes to iptables tables affect svcproxy."""

import pytest

from svcproxy.backends.iptables.core.drift import classify_change


@pytest.mark.parametrize("deletion", [True, False])
@pytest.mark.parametrize(
    ("table", "chain"),
    [
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-POSTROUTING"),
        ("nat", "KUBE-SVC-IP-0A600000-14"),
        ("nat", "KUBE-SEP-ABC"),
        ("filter", "KUBE-FORWARD"),
        ("filter", "KUBE-PROXY-FIREWALL"),
    ],
)
def test_changes_of_own_chains_affect_svcproxy(table: str, chain: str, *, deletion: bool) -> None:
    assert classify_change(table, chain, deletion=deletion) is True


def test_a_deletion_in_a_built_in_chain_may_affect_svcproxy() -> None:
    for table, chain in (("nat", "PREROUTING"), ("nat", "POSTROUTING"), ("filter", "FORWARD")):
        assert classify_change(table, chain, deletion=True) is False
        assert classify_change(table, chain, deletion=False) is None
    assert classify_change("nat", "INPUT", deletion=True) is None, "svcproxy has no jump there"


def test_the_deletion_of_a_table_affects_svcproxy() -> None:
    assert classify_change("nat", "", deletion=True) is True
    assert classify_change("nat", "", deletion=False) is None
    assert classify_change("mangle", "", deletion=True) is None


@pytest.mark.parametrize("chain", ["CNI-HOSTPORT-DNAT", "KUBE-KUBELET-CANARY", "DOCKER"])
@pytest.mark.parametrize("deletion", [True, False])
def test_chains_of_other_programs_do_not_matter(chain: str, *, deletion: bool) -> None:
    assert classify_change("nat", chain, deletion=deletion) is None
    assert classify_change("filter", "KUBE-SVC-A", deletion=deletion) is None, (
        "only nat has per-Service chains"
    )
