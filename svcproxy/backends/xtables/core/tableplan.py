"""The changes to one iptables table, and the restore input that makes them."""

import msgspec

from svcproxy.backends.xtables.core.rule_text import Rules


class Jump(msgspec.Struct, frozen=True, gc=False):
    """A rule in a built-in chain that jumps to a chain of svcproxy.

    Attributes:
        table: the table.
        source: the built-in chain.
        text: the rule.
    """

    table: str
    source: str
    text: str


class TablePlan(msgspec.Struct):
    """The changes to one table.

    Attributes:
        write: chains to replace as a whole, with their rules.
        remove: single rules (chain, text) to delete from chains that are not replaced.
        add: single rules (chain, text) to append to chains that are not replaced.
        jumps: rules to insert at the top of built-in chains.
        delete: chains to delete; no rule jumps to them after the other changes.
        fresh: the chains of ``write`` that the kernel does not have yet.
    """

    write: dict[str, Rules] = {}
    remove: list[tuple[str, str]] = []
    add: list[tuple[str, str]] = []
    jumps: list[Jump] = []
    delete: list[str] = []
    fresh: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.write or self.remove or self.add or self.jumps or self.delete)

    @property
    def rules(self) -> int:
        """The number of rules that this plan writes."""
        return sum(map(len, self.write.values())) + len(self.add) + len(self.jumps)

    def lines(self, table: str) -> list[str]:
        """Return the lines of the restore input; it declares all chains before their first use."""
        return [
            f"*{table}",
            *[f":{chain} - [0:0]" for chain in self.write],
            *[f":{chain} - [0:0]" for chain in self.delete],
            *[f"-D {chain} {text}" for chain, text in self.remove],
            *[f"-A {chain} {text}" for chain, rules in self.write.items() for text in rules],
            *[f"-A {chain} {text}" for chain, text in self.add],
            *[f"-I {jump.source} {jump.text}" for jump in self.jumps],
            *[f"-X {chain}" for chain in self.delete],
            "COMMIT",
        ]
