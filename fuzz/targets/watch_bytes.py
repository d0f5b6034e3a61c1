"""A watch of Services with one hostile event among valid ones, as its bytes arrive."""

from fuzz.apibytes import Source, hostile
from svcproxy.kube.core.lines import LineSplitter
from svcproxy.kube.core.outputs import Changed, Effect, Step
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.core.wire import ParseError
from svcproxy.kube.delivery import parse_safely
from svcproxy.model.names import Kind

SEEDS: tuple[bytes, ...] = (
    b"",
    b"\x01\x02\x03\x04",
    bytes(range(64)),
    b"\x02\x00\x02\x01\x00\x06\x00\x03\x0f\x9f",
    bytes(range(255, 0, -1)),
)

_GOOD = (
    (
        b'{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"good-0",'
        b'"namespace":"default","resourceVersion":"12"},"spec":{"clusterIP":"10.0.0.1"}}}\n'
    ),
    (
        b'{"type":"MODIFIED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"good-1",'
        b'"namespace":"default","resourceVersion":"13"},"spec":{"clusterIP":"10.0.0.2"}}}\n'
    ),
    (
        b'{"type":"DELETED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"good-2",'
        b'"namespace":"default","resourceVersion":"14"}}}\n'
    ),
)
_END = (
    b'{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{'
    b'"resourceVersion":"20","annotations":{"k8s.io/initial-events-end":"true"}}}}\n'
)
_TYPES = (b"ADDED", b"MODIFIED", b"DELETED")


def check(data: bytes) -> None:
    """Process the watch; the valid objects must be the same as without the hostile event."""
    source = Source(data)
    initial = source.number(2) == 1
    type_ = _TYPES[source.number(3)]
    limit = 300 + source.number(8192)
    line = b'{"type":"%s","object":%s}\n' % (type_, hostile(source, b"bad"))
    lines = list(_GOOD)
    lines.insert(source.number(4), line)
    stream = b"".join(lines) + _END
    expected = _follow([b"".join(_GOOD) + _END], limit, initial=initial)
    assert _follow(source.pieces(stream), limit, initial=initial) == expected
    _anything(data)


def _follow(pieces: object, limit: int, *, initial: bool) -> list[object]:
    reflector = Reflector(Kind.SERVICE, watch_list=initial)
    reflector.next_request()
    if not initial:
        reflector.list_page(
            b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"10"},'
            b'"items":[{"metadata":{"name":"good-2","namespace":"default"}}]}'
        )
        reflector.next_request()
    splitter = LineSplitter(limit)
    effects: list[Effect] = []
    for piece in pieces:  # type: ignore[attr-defined]
        output = reflector.watch_lines(splitter.feed(piece))
        assert output.step is Step.CONTINUE, output
        effects += output.effects
    assert dict(reflector.next_request().query)["resourceVersion"] == "20"
    return [_told(effect) for effect in effects if "good-" in str(getattr(effect, "name", ""))]


def _told(effect: Effect) -> object:
    if not isinstance(effect, Changed):
        return effect
    try:
        return effect.name, parse_safely(effect.obj)
    except ParseError as error:
        return effect.name, str(error)


def _anything(data: bytes) -> None:
    """Process arbitrary bytes as a watch: events or an error, but no exception."""
    reflector = Reflector(Kind.SERVICE)
    reflector.next_request()
    reflector.watch_lines(LineSplitter(1000).feed(data))
