"""Splits and repairs JSON text without decoding it, and without recursion.

msgspec recurses into every value, even into values that it skips, and refuses a whole document for
one invalid escape in a field that is not read. The functions here only look at strings and brackets.
They split a list or a watch event into its objects, so that each can be decoded separately, and
repair objects that the API server stores but msgspec refuses. They run only after msgspec failed,
in time linear in the size of the input.
"""

import re
from collections.abc import Iterator

from svcproxy import limits

# Possessive quantifiers never backtrack, which keeps the time linear.
_STRING_PATTERN = rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
_STRING = re.compile(_STRING_PATTERN, re.DOTALL)
_BRACKETS = re.compile(
    rb'(?:[^"\[\]{}]++|' + _STRING_PATTERN + rb")*+([\[{]++|[\]}]++|\Z)", re.DOTALL
)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^,:\[\]{}\"\s]++")
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(
    rb"((?:[^\\]++|" + _PAIR + rb"|\\u(?![dD][89a-fA-F])|\\[^u])*+)(\\u[dD][89a-fA-F]..|\\u?|\Z)",
    re.DOTALL,
)
_OPENING = b"[{"


class BrokenJsonError(ValueError):
    """A document is truncated, or the text between its values is not JSON."""


def decodable(data: bytes) -> bytes:
    """Repair text that Go accepts and msgspec refuses, and prune values that are nested too deeply."""
    return prune(repair(data), limits.OBJECT_DEPTH)


def prune(data: bytes, depth: int) -> bytes:
    """Replace every array and object that is nested too deeply with ``null``.

    Args:
        data: one JSON value.
        depth: the maximum nesting of arrays and objects; the outermost one is at depth 1.
    """
    pieces: list[bytes] = []
    level = kept = 0
    for begin, end in _runs(data, 0):
        size = end - begin
        if data[begin] in _OPENING:
            if level <= depth < level + size:
                pieces.append(data[kept : begin + depth - level])
            level += size
        else:
            if level > depth >= level - size:
                pieces.append(b"null")
                kept = begin + level - depth
            level -= size
    if level > depth:
        return b"".join(pieces)  # truncated within a pruned value: leave it incomplete
    return b"".join((*pieces, data[kept:])) if pieces else data


def repair(data: bytes) -> bytes:
    r"""Replace invalid UTF-8 and lone surrogates (``\ud800``) with U+FFFD, as Go's decoder does."""
    data = data.decode(errors="replace").encode()
    pieces, position, lone = [], 0, False
    while position < len(data):
        found = _LONE_SURROGATE.match(data, position)
        if found is None or found.end() == position:
            pieces.append(data[position:])
            break
        pieces.append(found[1])
        is_lone = len(found[2]) == 6
        pieces.append(b"\\ufffd" if is_lone else found[2])
        lone = lone or is_lone
        position = found.end()
    return b"".join(pieces) if lone else data


def members(data: bytes, *, partial: bool = False) -> dict[bytes, bytes]:
    """Split an object into its members: a mapping of undecoded keys to undecoded values.

    Args:
        data: the object. If a key is repeated, the last one counts.
        partial: return the members before the point where the text is truncated or malformed. The
            last value may be incomplete.

    Raises:
        BrokenJsonError: the text is not a complete object, and ``partial`` is not set.
    """
    found: dict[bytes, bytes] = {}
    try:
        found.update(_members(data))
    except BrokenJsonError:
        if not partial:
            raise
    return found


def elements(data: bytes) -> list[bytes]:
    """Split an array into its undecoded elements.

    Raises:
        BrokenJsonError: the text is not a complete array.
    """
    position = _expect(data, 0, b"[")
    found: list[bytes] = []
    if data[position : position + 1] == b"]":
        return found
    while True:
        end = _end_of_value(data, position)
        found.append(data[position:end])
        position = _skip(data, end)
        if data[position : position + 1] == b"]":
            return found
        position = _expect(data, position, b",")


def _members(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = _expect(data, 0, b"{")
    if data[position : position + 1] == b"}":
        return
    while True:
        key = _STRING.match(data, position)
        if key is None:
            raise BrokenJsonError(f"no key at byte {position}")
        position = _expect(data, key.end(), b":")
        end = _end_of_value(data, position)
        yield key[0][1:-1], data[position:end]
        position = _skip(data, end)
        if data[position : position + 1] == b"}":
            return
        position = _expect(data, position, b",")


def _end_of_value(data: bytes, position: int) -> int:
    """Return the offset after the value that begins at ``position``."""
    first = data[position : position + 1]
    if first and first in b"[{":
        level = 0
        for begin, end in _runs(data, position):
            if data[begin] in _OPENING:
                level += end - begin
            elif level <= end - begin:
                return begin + level
            else:
                level -= end - begin
        return len(data)
    found = (_STRING if first == b'"' else _SCALAR).match(data, position)
    if found is None:
        raise BrokenJsonError(f"no value at byte {position}")
    return found.end()


def _runs(data: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yield the span of each run of opening brackets and of each run of closing brackets."""
    while True:
        found = _BRACKETS.match(data, position)
        if found is None or found.start(1) == found.end(1):
            return
        yield found.span(1)
        position = found.end()


def _skip(data: bytes, position: int) -> int:
    space = _SPACE.match(data, position)
    return space.end() if space else position


def _expect(data: bytes, position: int, wanted: bytes) -> int:
    """Return the offset after the next character, which must be ``wanted``, and after spaces."""
    position = _skip(data, position)
    if data[position : position + 1] != wanted:
        raise BrokenJsonError(f"no {wanted.decode()} at byte {position}")
    return _skip(data, position + 1)
