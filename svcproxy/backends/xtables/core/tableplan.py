"""What is to be changed in one table of iptables, and the restore input that does it."""

import msgspec

from svcproxy.backends.xtables.core.rule_text import Rules


class Jump(msgspec.Struct, frozen=True, gc=False):
    """A rule in a built-in chain that leads to one of ours."""

    table: str
    source: str
    text: str


class TablePlan(msgspec.Struct):
    """The changes to one table, in the order in which they are sent.

    ``write`` replaces whole chains; ``remove`` and ``add`` are single rules (chain, text) of
    chains that are otherwise left alone; ``jumps`` are put at the top of built-in chains;
    ``delete`` names chains that nothing refers to any more. ``fresh`` names those to write that
    the kernel does not have yet.
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
        """How many rules this plan sends."""
        return sum(map(len, self.write.values())) + len(self.add) + len(self.jumps)

    def lines(self, table: str) -> list[str]:
        """The restore input; chains are declared before any rule refers to them."""
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
