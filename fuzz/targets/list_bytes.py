"""A list of Services with one hostile object among valid ones, as its bytes arrive."""

import zlib

from fuzz.apibytes import Source, hostile
from svcproxy.kube.core.body import Body
from svcproxy.kube.core.outputs import Changed, Effect, Listed, Malformed, Step
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.core.wire import ParseError
from svcproxy.kube.delivery import parse_safely
from svcproxy.model.names import Kind

SEEDS: tuple[bytes, ...] = (
    b"",
    b"\x01\x02\x03\x04",
    bytes(range(64)),
    b"\x00\x02\x01\x00\x06\x00\x03\x0f\x9f",
    bytes(range(255, 0, -1)),
)

_LIMIT = 1 << 22
_GOOD = tuple(
    b'{"metadata":{"name":"good-%d","namespace":"default","resourceVersion":"1%d"},'
    b'"spec":{"clusterIP":"10.0.0.%d","ports":[{"port":80}]}}' % (number, number, number)
    for number in range(3)
)
_PAGE = b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"20"},"items":[%s]}'


def check(data: bytes) -> None:
    """Decode the list; the valid objects must be the same as without the hostile one."""
    source = Source(data)
    items = list(_GOOD)
    items.insert(source.number(4), hostile(source, b"bad"))
    page = _received(source, _PAGE % b",".join(items))
    expected = _effects(_PAGE % b",".join(_GOOD))
    assert _good(_effects(page)) == _good(expected)
    anything(data)


def anything(data: bytes) -> None:
    """Decode arbitrary bytes as a list: a list or an error, but no exception."""
    reflector = Reflector(Kind.SERVICE, watch_list=False)
    reflector.next_request()
    reflector.list_page(data)


def _received(source: Source, page: bytes) -> bytes:
    """Send the page in pieces, compressed or not."""
    compressed = source.number(2) == 1
    if compressed:
        packer = zlib.compressobj(1, wbits=31)
        page = packer.compress(page) + packer.flush()
    body = Body("gzip" if compressed else "", _LIMIT)
    for piece in source.pieces(page):
        assert body.feed(piece)
    return body.whole()


def _effects(page: bytes) -> list[Effect]:
    reflector = Reflector(Kind.SERVICE, watch_list=False)
    reflector.next_request()
    output = reflector.list_page(page)
    assert output.step is Step.CONTINUE, output
    assert isinstance(output.effects[-1], Listed)
    assert dict(reflector.next_request().query)["resourceVersion"] == "20"
    return output.effects


def _good(effects: list[Effect]) -> list[object]:
    found: list[object] = []
    for effect in effects:
        if isinstance(effect, Changed):
            try:
                obj = parse_safely(effect.obj)
            except ParseError:
                obj = None
            if effect.name.name.startswith("good-"):
                found.append((effect.name, obj))
        else:
            assert isinstance(effect, Malformed | Listed), effect
    return found
