"""Dispatch trees: shape, path lengths, and incremental changes equal a tree from scratch."""

import re
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.backends.iptables.core import dispatch
from svcproxy.backends.iptables.core.dispatch import LEAF, DispatchTree, frontend_key
from svcproxy.backends.xtables.core.rule_text import Rules
from svcproxy.model.names import Protocol
from tests.examples import examples


def tree(texts: dict[int, str], bits: int) -> DispatchTree:
    made = DispatchTree("ROOT", bits, after=("the last rule",))
    made.load(texts)
    return made


def addresses(count: int, prefix: str, seed: int = 1) -> dict[int, str]:
    network = ip_network(prefix)
    random = Random(seed)
    texts: dict[int, str] = {}
    while len(texts) < count:
        address = str(network[random.randrange(network.num_addresses)])
        texts[frontend_key(address, Protocol.TCP, 80)] = f"-d {address} -j {address}"
    return texts


def rules_passed(chains: dict[str, Rules], address: str) -> int:
    """Count the rules that a packet to ``address`` port 80 traverses."""
    passed, chain = 0, "ROOT"
    while True:
        for rule in chains[chain]:
            passed += 1
            if rule.startswith(f"-d {address} "):
                return passed
            found = re.fullmatch(r"-d (\S+/\d+)(?: -p tcp)? -j (\S+)", rule)
            if found and ip_address(address) in ip_network(found[1]):
                chain = found[2]
                break
        else:
            raise AssertionError(f"no rule for {address} in {chain}")


def test_few_keys_are_in_the_root_chain() -> None:
    texts = addresses(LEAF, "10.96.0.0/12")
    chains = tree(texts, 32).chains()
    assert set(chains) == {"ROOT"}
    assert chains["ROOT"] == (*(texts[k] for k in sorted(texts)), "the last rule")


@pytest.mark.parametrize("prefix", ["10.96.0.0/12", "10.96.0.0/16", "fd00:10:96::/108"])
def test_a_packet_traverses_a_logarithmic_number_of_rules(prefix: str) -> None:
    bits = ip_network(prefix).max_prefixlen
    means = []
    for count in (100, 1_000, 10_000):
        texts = addresses(count, prefix)
        chains = tree(texts, bits).chains()
        sample = Random(2).sample(sorted(texts), 100)
        traversed = [rules_passed(chains, texts[k].split()[1]) for k in sample]
        means.append(sum(traversed) / len(traversed))
    assert means[2] < 45
    # Ten times as many keys add a constant number of rules.
    assert means[2] - means[1] < 25
    assert means[1] - means[0] < 25


def test_many_ports_of_one_address_are_divided_by_port() -> None:
    texts = {frontend_key("203.0.113.9", Protocol.TCP, p): f"rule {p}" for p in range(1000, 1400)}
    chains = tree(texts, 32).chains()
    assert len(chains) > 10
    assert max(map(len, chains.values())) <= 3 * LEAF
    text = " ".join(rule for rules in chains.values() for rule in rules)
    assert re.search(r"-d 203\.0\.113\.9/32 -p tcp -m tcp --dport \d+:\d+ -j KUBE-SVC-", text)


def test_chain_names_fit_the_kernel_and_have_the_prefix() -> None:
    for bits, texts in (
        (0, {frontend_key("", p, n): f"{p}{n}" for p in Protocol for n in range(30000, 30400)}),
        (32, addresses(2000, "10.96.0.0/12")),
        (128, addresses(2000, "fd00:10:96::/108")),
    ):
        names = set(tree(texts, bits).chains()) - {"ROOT"}
        assert names
        assert all(n.startswith("KUBE-SVC-") and len(n) <= 28 for n in names)


numbers = st.builds(
    lambda base, low, protocol, port: ((base + low) << 18) | (protocol << 16) | port,
    st.sampled_from([0x0A600000, 0x0A600000, 0x0A600000, 0xCB007100]),
    st.integers(0, 600),
    st.integers(0, 2),
    st.sampled_from([80, 443, 8080]),
)
batches = st.lists(
    st.dictionaries(numbers, st.one_of(st.none(), st.sampled_from(["a", "b"])), max_size=60),
    max_size=8,
)


@settings(max_examples=examples(150), deadline=None)
@given(batches)
def test_incremental_changes_equal_a_tree_from_scratch(steps: list[dict[int, str | None]]) -> None:
    incremental = DispatchTree("ROOT", 32, after=("the last rule",))
    texts: dict[int, str] = {}
    held: dict[str, Rules] = dict(incremental.chains())
    for step in steps:
        wanted = {k: f"{t} {k}" if t else None for k, t in step.items() if t or k in texts}
        change = incremental.change(wanted)
        size = sum(map(len, held.values()))
        for name, rules in change.chains.items():
            assert held.get(name) != rules, "an unchanged chain was returned"
            if rules is None:
                del held[name]
            else:
                held[name] = rules
        for number, text in wanted.items():
            if text is None:
                del texts[number]
            else:
                texts[number] = text
        assert held == tree(texts, 32).chains()
        assert sum(map(len, held.values())) == size + change.growth


def test_one_changed_key_changes_few_chains() -> None:
    texts = addresses(10_000, "10.96.0.0/12")
    made = tree(texts, 32)
    total = len(made.chains())
    random = Random(3)
    for number in random.sample(sorted(texts), 50):
        change = made.change({number: None})
        assert 1 <= len(change.chains) <= 3, f"of {total}"
        assert sum(len(r or ()) for r in change.chains.values()) <= 4 * LEAF


def test_a_batch_of_changes_computes_each_chain_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing them once per key took 7 s for 2,000 keys, and hours for 100,000."""
    computed = 0
    node = dispatch._View._node

    def counted(view: dispatch._View, span: dispatch._Range, name: str) -> tuple[Rules, list[Any]]:
        nonlocal computed
        computed += 1
        return node(view, span, name)

    monkeypatch.setattr(dispatch._View, "_node", counted)
    made, texts = tree({}, 32), addresses(2000, "10.96.0.0/16")
    assert made.change(texts).growth > 2000
    assert made.chains() == tree(texts, 32).chains()
    assert len(made) == 2000
    made.change(dict.fromkeys(texts))
    assert len(made) == 0
    assert computed < 20_000
