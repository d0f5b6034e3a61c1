"""Hostile API objects, made from a fuzzer's bytes: text that an API server could send.

Strings and brackets are balanced, as API servers check that. Everything else can be wrong.
"""

from collections.abc import Iterator

_FIELDS = (
    b"metadata",
    b"name",
    b"namespace",
    b"resourceVersion",
    b"labels",
    b"annotations",
    b"managedFields",
    b"spec",
    b"ports",
    b"port",
    b"status",
    b"loadBalancer",
    b"ingress",
    b"clusterIP",
    b"clusterIPs",
    b"endpoints",
    b"addresses",
    b"conditions",
    b"kind",
    b"apiVersion",
    b"type",
    b"items",
    b"object",
)
_SCALARS = (
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 400,
    b"80",
    b"1.5",
    b'"Service"',
    b'"v1"',
    rb'"\ud800"',
    rb'"\ud83d\ude00"',
    rb'"\udc00\ud800"',
    rb'"\u00"',
    rb'"\x"',
    b'"\xff\xc0"',
    b'"\x00"',
    rb'"\\\\"',
    b"[]",
    b"{}",
)


class Source:
    """Numbers and bytes, taken from a fuzzer's input; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, below: int) -> int:
        """Take a number from 0 up to, but not including ``below`` (at most 65,536)."""
        size = 1 if below <= 256 else 2
        return int.from_bytes(self.take(size), "big") % below

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        piece = self._data[self._position : self._position + size]
        self._position += size
        return piece.ljust(size, b"\0")

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Split bytes at positions that the fuzzer chooses."""
        while data:
            size = 1 + self.number(1 << (1 + self.number(14)))
            yield data[:size]
            data = data[size:]


def hostile(source: Source, name: bytes) -> bytes:
    """Return one object with a name, metadata that may be malformed, and arbitrary fields."""
    metadata = b'"name":"%s","namespace":"default","resourceVersion":"15"' % name
    parts = [b'"kind":"Service"', b'"apiVersion":"v1"'][: source.number(3)]
    spoiled = b",".join(_member(source) for _ in range(source.number(4)))
    order = source.number(4)
    if order == 0:
        metadata = spoiled
    elif spoiled:
        metadata = spoiled + b"," + metadata if order == 1 else metadata + b"," + spoiled
    parts.append(b'"metadata":{%s}' % metadata)
    for _ in range(source.number(4)):
        parts.insert(source.number(len(parts) + 1), _member(source))
    return b"{%s}" % b",".join(parts)


def _member(source: Source) -> bytes:
    key = b'"%s"' % _FIELDS[source.number(len(_FIELDS))]
    if source.number(8) == 0:
        key = _string(source)
    return key + b":" + _value(source, 4)


def _value(source: Source, levels: int) -> bytes:
    choice = source.number(8 if levels else 4)
    if choice <= 1:
        return _SCALARS[source.number(len(_SCALARS))]
    if choice == 2:
        return _string(source)
    if choice == 3:
        depth = source.number(4000)
        return b"[" * depth + b"]" * depth or b"0"
    if choice == 4:
        depth = source.number(2000)
        return b'{"a":' * depth + _value(source, 0) + b"}" * depth
    inner = range(source.number(4))
    if choice <= 6:
        return b"{%s}" % b",".join(
            b'"%s":%s' % (_FIELDS[source.number(len(_FIELDS))], _value(source, levels - 1))
            for _ in inner
        )
    return b"[%s]" % b",".join(_value(source, levels - 1) for _ in inner)


def _string(source: Source) -> bytes:
    """Return a string of any bytes except those that end the string or the line."""
    text = source.take(source.number(40)).replace(b"\n", b"n")
    if source.number(2):
        return b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    # Invalid escapes, but never an odd backslash before the closing quote
    return b'"%s"' % text.replace(b'"', b"").replace(b"\\", b"\\u").rstrip(b"\\")
