"""Reading iptables-save output."""

from svcproxy.backends.xtables.ruleset import Rules

_TWO_SPACES = ("--nfacct-name  ", "--nfacct-name ")
"""How iptables 1.8.9 prints it."""

Saved = dict[str, dict[str, Rules]]
"""Rules by table and chain, without the leading ``-A CHAIN``."""


def parse(text: str) -> Saved:
    """Read the output of one or more runs of iptables-save.

    Lines that are none of tables, chains and rules (comments, counters, warnings of the nft
    variant about legacy tables) are passed over.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            current.setdefault(chain, []).append(rule.rstrip().replace(*_TWO_SPACES))
        elif line.startswith(":"):
            current.setdefault(line[1:].partition(" ")[0], [])
        elif line.startswith("*"):
            current = tables.setdefault(line[1:].strip(), {})
    return {
        table: {chain: tuple(rules) for chain, rules in chains.items()}
        for table, chains in tables.items()
    }
