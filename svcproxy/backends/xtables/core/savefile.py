"""Parses the output of iptables-save, which includes rules of other programs.

The comment of such a rule may hold any text. iptables-save quotes and escapes comments, but prints
newlines unchanged. One rule can therefore look like several lines, such as ``COMMIT``, ``*filter``
or a rule in a chain of svcproxy; this parser joins these lines again. Names of interfaces, chains
and sets are printed without quotes, even if they begin with a quote.
"""

import re

from svcproxy.backends.xtables.core.rule_text import Rules

_TWO_SPACES = ("--nfacct-name  ", "--nfacct-name ")
"""iptables 1.8.9 prints two spaces after this option."""
_QUOTED_LINES = 256
"""More lines than a quoted text can have: a comment has at most 255 characters."""
_CLOSED = r'"(?:[^"\\]|\\.)*"(?= |\Z)'
_OPEN = r'"(?:[^"\\]|\\.)*\Z'
_QUOTE = re.compile(rf"(?:^| )--\S+ (?:{_CLOSED}|({_OPEN}))", re.DOTALL)
_CLOSED_QUOTE, _OPEN_QUOTE = re.compile(_CLOSED, re.DOTALL), re.compile(_OPEN, re.DOTALL)
_QUOTED = re.compile(rf"(?<= ){_CLOSED}", re.DOTALL)

_PLAIN_OPTIONS = ("--comment ", "--bytecode ")

Saved = dict[str, dict[str, Rules]]
"""Rules by table and chain, without the leading ``-A CHAIN``."""


def parse(text: str) -> Saved:
    """Parse the output of one or more runs of iptables-save; never raises.

    Lines other than tables, chains and rules are ignored, such as comments, and warnings of the nft
    variant about legacy tables.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    lines = text.split("\n")
    following = 0
    spaced = _TWO_SPACES[0] in text
    for number, line in enumerate(lines, 1):
        if number <= following:
            continue
        if line.startswith("-A "):
            quoted = '"' in line
            whole = line
            if quoted and not _is_plain(line):
                whole, following = _whole_rule(lines, number)
            chain, _, rule = whole[3:].partition(" ")
            # svcproxy's rules with this option have no quotes, and quoted text must not change.
            if spaced and not quoted:
                rule = rule.replace(*_TWO_SPACES)
            current.setdefault(chain, []).append(rule.rstrip(" "))
        elif line.startswith(":"):
            current.setdefault(line[1:].partition(" ")[0], [])
        elif line.startswith("*"):
            current = tables.setdefault(line[1:].strip(), {})
    return {
        table: {chain: tuple(rules) for chain, rules in chains.items()}
        for table, chains in tables.items()
    }


def _is_plain(line: str) -> bool:
    """Whether a line is certainly a complete rule with one quoted text; nearly all rules are."""
    if "\\" in line or line.count('"') != 2:
        return False
    after = line[line.rfind('"') + 1 :]
    return line.endswith(_PLAIN_OPTIONS, 0, line.find('"')) and (not after or after[0] == " ")


def _whole_rule(lines: list[str], following: int) -> tuple[str, int]:
    """Join the lines of one rule.

    Args:
        lines: all lines.
        following: the number of the line after the rule's first line.

    Returns:
        The rule, and the number of the line after its last line.
    """
    alone = rule = lines[following - 1]
    number = following
    last = min(following + _QUOTED_LINES, len(lines))
    while (quote := _open_quote(rule)) is not None:
        while _OPEN_QUOTE.match(rule, quote):
            if number == last:
                return alone, following
            rule = f"{rule}\n{lines[number]}"
            number += 1
        if not _CLOSED_QUOTE.match(rule, quote):
            return alone, following
    return rule, number


def _open_quote(rule: str) -> int | None:
    """Return where an unclosed quoted text at the end of a rule begins; ``None`` without one."""
    return next((m.start(1) for m in _QUOTE.finditer(rule) if m[1] is not None), None)


def unquoted(rule: str) -> str:
    """Return a rule without its quoted texts, to search it for options."""
    return _QUOTED.sub(" ", rule) if '"' in rule else rule
