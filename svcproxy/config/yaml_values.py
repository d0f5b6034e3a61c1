"""Reads values of the configuration file from YAML nodes, with the types that Go expects.

Each reader takes a node and returns the text that a flag for the same setting would have, or ``None``
for null, which keeps the default. It raises ``ValueError`` with the reason.

The YAML dialect is that of sigs.k8s.io/yaml: YAML 1.1 with ``y`` and ``n``, without base-60 numbers
and dates. JSON is a subset.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from svcproxy.config.parsing import printable

Reader = Callable[[yaml.Node], str | None]

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STRING = (
    _TAG + name for name in ("null", "bool", "int", "float", "str")
)
_NAMES = {_NULL: "null", _BOOL: "a boolean", _INT: "a number", _FLOAT: "a number"}
# The largest of Go's types is uint32; the range check of a setting reports what exceeds int32
_LARGEST = 2**32 - 1
_TRUE = frozenset({"y", "yes", "true", "on"})


# The type of an unquoted scalar, by tag, pattern and possible first characters
SCALARS = (
    (_BOOL, r"[yY]|yes|Yes|YES|[nN]|no|No|NO|true|True|TRUE|false|False|FALSE", "yYnNtTfF"),
    (_BOOL, r"on|On|ON|off|Off|OFF", "oO"),
    (_INT, r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_TAG + "merge", "<<", "<"),
)


class Loader(yaml.SafeLoader):
    """Composes nodes; use it with ``get_node`` only."""


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in SCALARS:
    Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})\\Z"), list(_first))


def is_null(node: yaml.Node) -> bool:
    """Whether a node is null."""
    return bool(node.tag == _NULL)


def string(node: yaml.Node) -> str | None:
    """Read a string.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    if node.tag != _STRING:
        raise _wrong("a string", node, _quotes(node))
    return str(node.value)


def boolean(node: yaml.Node) -> str | None:
    """Read a boolean.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    if node.tag != _BOOL:
        raise _wrong("true or false", node)
    return str(node.value.lower() in _TRUE).lower()


def integer(node: yaml.Node) -> str | None:
    """Read an integer.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    value = _number(node)
    if value != int(value) or abs(value) > _LARGEST:
        raise ValueError("must be a whole number of 32 bits")
    return str(int(value))


def number(node: yaml.Node) -> str | None:
    """Read a number.

    Raises:
        ValueError: the node has another type.
    """
    return None if is_null(node) else f"{_number(node)}"


def strings(node: yaml.Node) -> str | None:
    """Read a list of strings to a comma-separated list.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong("a list of strings", node)
    entries = []
    for index, entry in enumerate(node.value):
        try:
            entries.append(string(entry) or "")
        except ValueError as error:
            raise ValueError(f"entry {index} {error}") from None
        if "," in entries[-1]:
            raise ValueError(f"entry {index} contains a comma; write one entry for each part")
    return ",".join(entries)


def gates(node: yaml.Node) -> str | None:
    """Read a map from names to booleans to the form of a flag: ``A=true,B=false``.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    if not isinstance(node, yaml.MappingNode):
        raise _wrong("a map from names to true or false", node)
    entries = []
    for key, value in node.value:
        try:
            entries.append(f"{string(key)}={boolean(value) or 'false'}")
        except ValueError as error:
            raise ValueError(f"{printable(str(key.value))}: {error}") from None
    return ",".join(entries)


def vmodule(node: yaml.Node) -> str | None:
    """Read a list of file patterns and verbosities to the form of a flag: ``pattern=4``.

    Raises:
        ValueError: the node has another type.
    """
    if is_null(node):
        return None
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong("a list of maps", node)
    entries = []
    for entry in node.value:
        if not isinstance(entry, yaml.MappingNode):
            raise _wrong("a list of maps", entry)
        fields = {key.value: value for key, value in entry.value}
        pattern = string(fields["filePattern"]) if "filePattern" in fields else ""
        level = integer(fields["verbosity"]) if "verbosity" in fields else "0"
        entries.append(f"{pattern}={level}")
    return ",".join(entries)


def quantity(node: yaml.Node) -> str | None:
    """Read a quantity: a string, or a number as written.

    Raises:
        ValueError: the node has another type.
    """
    return str(node.value) if node.tag in {_INT, _FLOAT} else string(node)


def flush_frequency(node: yaml.Node) -> str | None:
    """Read a duration: a string, or an integer number of nanoseconds.

    Raises:
        ValueError: the node has another type.
    """
    return f"{integer(node)}ns" if node.tag in {_INT, _FLOAT} else string(node)


def text_of(node: yaml.Node) -> str:
    """Return a node as text for a message: the text of a scalar, else the type."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else f"({_kind(node)})"


def _wrong(wanted: str, node: yaml.Node, remedy: str = "") -> ValueError:
    return ValueError(f"must be {wanted}, but is {_kind(node)}{remedy}")


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a map" if isinstance(node, yaml.MappingNode) else _NAMES.get(node.tag, "a string")


def _quotes(node: yaml.Node) -> str:
    return "; put it in quotes" if isinstance(node, yaml.ScalarNode) else ""


def _number(node: yaml.Node) -> Any:
    text = str(node.value).replace("_", "") if isinstance(node, yaml.ScalarNode) else ""
    if node.tag == _INT:
        digits = text.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdecimal()
        return int(text, 8) if octal else int(text, 0)
    if node.tag == _FLOAT:
        return float(text)
    raise _wrong("a number", node)
