"""Prints a table as ``nft list table`` does (1.0.6, whose forms later versions read).

There is one intended difference. If a look-up uses the result of another look-up, nft hides the
first one and prints the former contents of its registers. Here the first look-up ends with
``as $1``, and the parts of its value are ``$1.1``, ``$1.2``, and so on. Unknown expressions are
printed in brackets with their attributes.
"""

from collections.abc import Iterator

from svcproxy.explain.core.nft_statements import Statements
from svcproxy.explain.core.nft_table import (
    HOOKS,
    ChainInfo,
    NftTable,
    SetInfo,
    comment_of,
    decode_rule,
    describe_chain,
    describe_set,
    element_value,
)
from svcproxy.explain.core.nft_types import declaration, duration, show
from svcproxy.netlink.core.attributes import collect

_SET_COMMENT = 7
_FLAGS = {0x1: None, 0x2: "constant", 0x4: "interval", 0x8: None, 0x10: "timeout", 0x20: "dynamic"}
_FLAG_ORDER = ("constant", "interval", "dynamic", "timeout")
_PRIORITIES = {
    -300: "raw",
    -150: "mangle",
    -100: "dstnat",
    0: "filter",
    50: "security",
    100: "srcnat",
}
_ONLY_AT = {"dstnat": "PREROUTING", "srcnat": "POSTROUTING"}
_NEAR = 10


def print_table(table: NftTable) -> str:
    """Print a table as ``nft list table`` does."""
    lines = [f"table {table.family} {table.name} {{"]
    if table.comment:
        lines.append(f'\tcomment "{table.comment}"')
    for name in table.sets:
        lines += [f"\t{line}" for line in set_lines(table, name)] + [""]
    for name in table.chains:
        lines += [f"\t{line}" for line in chain_lines(table, name)] + [""]
    if not lines[-1]:
        lines.pop()
    return "\n".join([*lines, "}"]) + "\n"


def set_lines(table: NftTable, name: str) -> list[str]:
    """Return the lines of a set or map with its elements."""
    info = describe_set(table.sets[name])
    lines = [f"{'map' if info.data_length else 'set'} {name} {{", f"\t{declaration(info)}"]
    if info.size:
        lines.append(f"\tsize {info.size}")
    flags = {text for bit, text in _FLAGS.items() if info.flags & bit and text}
    unknown = info.flags & ~sum(_FLAGS)
    if flags or unknown:
        shown = [flag for flag in _FLAG_ORDER if flag in flags]
        lines.append(f"\tflags {','.join(shown + ([f'[{unknown:#x}]'] if unknown else []))}")
    comment = info.notes.get(_SET_COMMENT, b"").rstrip(b"\0").decode(errors="replace")
    if comment:
        lines.append(f'\tcomment "{comment}"')
    elements = element_texts(table, name)
    if elements:
        start = "\telements = { "
        lines.append((",\n\t\t" + " " * 5).join([start + elements[0], *elements[1:]]) + " }")
    return [*"\n".join(lines).split("\n"), "}"]


def element_texts(table: NftTable, name: str) -> list[str]:
    """Return the elements of a set as nft prints them, sorted by key."""
    info = describe_set(table.sets[name])
    return [
        element_text(info, key, tail) for key, tail in sorted(table.elements.get(name, {}).items())
    ]


def element_text(info: SetInfo, key: bytes, tail: bytes) -> str:
    """Return an element of a set as nft prints it.

    Args:
        info: the set.
        key: the element's key.
        tail: its attributes after the key.
    """
    parts = collect(tail)
    text = show(info.key_type, key)
    for kind, label in ((4, "timeout"), (5, "expires")):
        if kind in parts:
            text += f" {label} {duration(int.from_bytes(parts[kind], 'big'))}"
    comment = comment_of(parts.get(6, b""), 0)
    if comment:
        text += f' comment "{comment}"'
    if info.data_length:
        text += f" : {show(info.data_type, element_value(tail))}"
    return text


def chain_lines(table: NftTable, name: str) -> list[str]:
    """Return the lines of a chain with its rules."""
    info = describe_chain(table.chains[name])
    lines = [f"chain {name} {{"]
    if info.hook >= 0:
        policy = "accept" if info.accepts else "drop"
        hook = HOOKS[info.hook].lower()
        lines.append(f"\ttype {info.kind} hook {hook} priority {_priority(info)}; policy {policy};")
    lines += [f"\t{rule_text(table, body)}" for body in table.rules.get(name, ())]
    return [*lines, "}"]


def _priority(info: ChainInfo) -> str:
    """Return a priority by name, relative to a near name, or as a number; names depend on the hook."""
    for number, name in _PRIORITIES.items():
        away = info.priority - number
        if abs(away) <= _NEAR and _ONLY_AT.get(name) in {None, HOOKS[info.hook]}:
            if not away:
                return name
            return f"{name} {'+' if away > 0 else '-'} {abs(away)}"
    return str(info.priority)


def rule_text(table: NftTable, body: bytes) -> str:
    """Return a rule in nft syntax."""
    rule = decode_rule(body)
    statements = Statements(table)
    for expression in rule.expressions:
        statements.add(expression)
    comment = [f'comment "{rule.comment}"'] if rule.comment else []
    return " ".join([*statements.texts, *comment])


def element_commands(table: NftTable) -> Iterator[str]:
    """Yield one ``add element`` command for each element, sorted by set and key."""
    for name in sorted(table.sets):
        for text in element_texts(table, name):
            yield f"add element {table.family} {table.name} {name} {{ {text} }}"
