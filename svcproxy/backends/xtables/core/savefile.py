"""Reading iptables-save output, which other programs' rules are part of.

A rule's text may hold whatever root wrote there. iptables-save quotes and escapes comments but
prints their newlines as they are, so that one rule can look like several lines, among them
``COMMIT``, ``*filter`` or a rule in one of our chains. Such a rule is put together again here.
Names of interfaces, chains and sets are printed without quotes and may begin with one.
"""

import re

from svcproxy.backends.xtables.core.rule_text import Rules

_TWO_SPACES = ("--nfacct-name  ", "--nfacct-name ")
"""How iptables 1.8.9 prints it."""
_QUOTED_LINES = 256
"""A quoted text of so many lines is none: the kernel keeps at most 255 characters of a comment."""
_CLOSED = r'"(?:[^"\\]|\\.)*"(?= |\Z)'
_OPEN = r'"(?:[^"\\]|\\.)*\Z'
_QUOTE = re.compile(rf"(?:^| )--\S+ (?:{_CLOSED}|({_OPEN}))", re.DOTALL)
_CLOSED_QUOTE, _OPEN_QUOTE = re.compile(_CLOSED, re.DOTALL), re.compile(_OPEN, re.DOTALL)
_QUOTED = re.compile(rf"(?<= ){_CLOSED}", re.DOTALL)

_PLAIN_OPTIONS = ("--comment ", "--bytecode ")

Saved = dict[str, dict[str, Rules]]
"""Rules by table and chain, without the leading ``-A CHAIN``."""


def parse(text: str) -> Saved:
    """Read the output of one or more runs of iptables-save; never fails.

    Lines that are none of tables, chains and rules (comments, counters, warnings of the nft
    variant about legacy tables) are passed over.
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
            # Ours with a counter have no quotes, and what is quoted must not change.
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
    """Whether a line surely is a whole rule with one quoted text, as nearly all are."""
    if "\\" in line or line.count('"') != 2:
        return False
    after = line[line.rfind('"') + 1 :]
    return line.endswith(_PLAIN_OPTIONS, 0, line.find('"')) and (not after or after[0] == " ")


def _whole_rule(lines: list[str], following: int) -> tuple[str, int]:
    """Put the rule together whose first line stands before ``following``.

    Returns:
        The rule, and the number of the line after it.
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
    """Where the quoted text begins that a rule's text ends in."""
    return next((m.start(1) for m in _QUOTE.finditer(rule) if m[1] is not None), None)


def unquoted(rule: str) -> str:
    """A rule with its quoted texts left out, in which options can be looked for."""
    return _QUOTED.sub(" ", rule) if '"' in rule else rule
