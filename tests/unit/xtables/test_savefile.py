"""Parsing the output of iptables-save with arbitrary rules of other programs."""

import pytest

from svcproxy.backends.xtables.core.savefile import parse, unquoted

OWN = ":KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -p tcp -j DNAT --to-destination 1.2.3.4:5\n"


@pytest.mark.parametrize(
    "foreign",
    [
        '-A INPUT -m comment --comment "a\n-A KUBE-SVC-A -j DROP\nCOMMIT" -j ACCEPT',
        '-A INPUT -m comment --comment "\n*filter\n:KUBE-SVC-B - [0:0]"',
        '-A INPUT -m comment --comment " x\n*filter" -j ACCEPT',
        '-A INPUT -m comment --comment "\\"\n*filter\n\\\\" -m comment --comment "y\n*raw" -j X',
        '-A INPUT -i a"b -m comment --comment "x\n*filter" -j ACCEPT',
        '-A INPUT -i "b -m comment --comment " x\n*filter" -j ACCEPT',
        '-A INPUT -i "b -j ACCEPT',
        '-A INPUT -i a"b -j ACCEPT',
        '-A "x -j "y',
        '-A INPUT -m set --match-set "a src -j ACCEPT',
        '-A INPUT -m comment --comment "cr\r*filter\r\udcff" -j ACCEPT',
    ],
)
def test_rules_of_other_programs_do_not_affect_own_chains(foreign: str) -> None:
    found = parse(f"*nat\n:INPUT ACCEPT [0:0]\n{foreign}\n{OWN}COMMIT\n*mangle\nCOMMIT\n")
    assert set(found) == {"nat", "mangle"}
    own = {chain: rules for chain, rules in found["nat"].items() if chain.startswith("KUBE")}
    assert own == {"KUBE-SVC-A": ("-p tcp -j DNAT --to-destination 1.2.3.4:5",)}


def test_an_unclosed_quote_affects_only_its_line() -> None:
    lines = "".join(f"-A KUBE-SVC-A -j A{number}\n" for number in range(300))
    found = parse(f'*nat\n-A INPUT -m comment --comment "open\n{lines}COMMIT\n')
    assert len(found["nat"]["KUBE-SVC-A"]) == 300


def test_quoted_text_is_unchanged() -> None:
    text = '-m comment --comment "--nfacct-name  x" -j ACCEPT'
    assert parse(f"*nat\n-A X {text}\n")["nat"]["X"] == (text,)
    assert parse("*nat\n-A X -m nfacct --nfacct-name  y\n")["nat"]["X"] == (
        "-m nfacct --nfacct-name y",
    )


def test_options_are_found_only_outside_quotes() -> None:
    assert "-j" not in unquoted('-m comment --comment "a -j KUBE-SERVICES \\" -j X" -g Y')
    assert unquoted("-j Y") == "-j Y"
