"""What iptables-restore --noflush would make of an input, strictly: nonsense raises.

It stands in for the kernel only where thousands of random inputs are tried; that the real
programs agree is for the kernel tests to show.
"""

import re
from collections.abc import Iterable

from svcproxy.backends.xtables.core.savefile import Saved

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
_TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT", "DNAT", "MARK", "MASQUERADE", "SET"}
_SET = re.compile(r"--(?:match|add)-set (\S+)")
_JUMP = re.compile(r"(?:^| )-j (\S+)")


class RestoreError(Exception):
    """A line that the real program would refuse."""


class RestoredTables:
    """Tables that take restore inputs, one transaction per table."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, list[str]]] = {
            table: {chain: [] for chain in chains} for table, chains in BUILT_IN.items()
        }
        self.sets: set[str] = set()

    def saved(self) -> Saved:
        """The tables as iptables-save would give them."""
        return {
            table: {chain: tuple(rules) for chain, rules in chains.items()}
            for table, chains in self.tables.items()
        }

    def restore(self, text: str) -> None:
        """Apply an input; a table whose transaction fails stays as it was."""
        table = ""
        work: dict[str, list[str]] = {}
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
                work = {chain: list(rules) for chain, rules in self.tables[table].items()}
            elif line == "COMMIT":
                _check_jumps(work)
                self._check_sets(work)
                self.tables[table] = work
            else:
                _apply(work, line)

    def create_sets(self, names: Iterable[str]) -> None:
        """Create ipsets; existing ones are left as they are."""
        self.sets.update(names)

    def destroy_sets(self, names: Iterable[str]) -> None:
        """Destroy ipsets that no rule names."""
        self.sets.difference_update(names)
        for work in self.tables.values():
            self._check_sets(work)

    def _check_sets(self, work: dict[str, list[str]]) -> None:
        for rules in work.values():
            for rule in rules:
                missing = set(_SET.findall(rule)) - self.sets
                if missing:
                    raise RestoreError(f"no such set: {missing}")


def _apply(work: dict[str, list[str]], line: str) -> None:
    command, _, rest = line.partition(" ")
    chain, _, rule = rest.partition(" ")
    if command.startswith(":"):
        work[command[1:]] = []
        return
    if chain not in work:
        raise RestoreError(f"no such chain: {line}")
    if command == "-A":
        work[chain].append(rule)
    elif command == "-I":
        work[chain].insert(0, rule)
    elif command == "-D":
        if rule not in work[chain]:
            raise RestoreError(f"no such rule: {line}")
        work[chain].remove(rule)
    elif command == "-X":
        users = [c for c, rules in work.items() if any(_target(r) == chain for r in rules)]
        if work[chain] or users:
            raise RestoreError(f"chain is in use by {users}: {line}")
        del work[chain]
    else:
        raise RestoreError(f"unknown command: {line}")


def _check_jumps(work: dict[str, list[str]]) -> None:
    for chain, rules in work.items():
        for rule in rules:
            target = _target(rule)
            if target not in _TARGETS and target not in work:
                raise RestoreError(f"{chain} jumps to {target}, which does not exist")


def _target(rule: str) -> str:
    found = _JUMP.search(rule)
    return found[1] if found else ""
