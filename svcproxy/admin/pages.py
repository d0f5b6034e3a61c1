"""What the admin socket answers, see ``core/protocol.py``."""

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from svcproxy.admin import objects
from svcproxy.admin.core.protocol import Status
from svcproxy.admin.pacing import Pacer
from svcproxy.model.names import Kind
from svcproxy.observe.core.routes import TEXT
from svcproxy.state.desired import DesiredState

_JSON = "application/json"
_LINES = "application/jsonl"

Query = Mapping[str, str]


class Answer(NamedTuple):
    """An answer, in pieces; a piece is computed when it is asked for."""

    status: HTTPStatus
    content_type: str
    pieces: Iterator[bytes]


class Sources(NamedTuple):
    """Where the answers come from.

    Attributes:
        status: returns the state of the daemon.
        states: the desired state of each family.
        metrics: returns the metrics in the text format.
    """

    status: Callable[[], Status]
    states: tuple[DesiredState, ...]
    metrics: Callable[[], bytes]


class AdminPages:
    """Answers requests.

    Args:
        sources: where the answers come from.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._pacer = Pacer()
        self._pages: Mapping[str, Callable[[Query], Answer]] = {
            "/v1/status": self._status,
            "/v1/objects": self._objects,
            "/v1/metrics": lambda _: self._at_once(TEXT, sources.metrics),
        }

    def answer(self, path: str, query: Query) -> Answer:
        """Return the answer to a GET request."""
        page = self._pages.get(path)
        if page is None:
            return failure(HTTPStatus.NOT_FOUND)
        return page(query)

    def _status(self, _query: Query) -> Answer:
        return self._at_once(_JSON, lambda: msgspec.json.encode(self._sources.status()))

    def _objects(self, query: Query) -> Answer:
        try:
            kind = Kind(query.get("kind", ""))
        except ValueError:
            return failure(HTTPStatus.BAD_REQUEST)
        found = objects.stored(self._sources.states, kind)
        return Answer(HTTPStatus.OK, _LINES, objects.lines(found, self._pacer))

    def _at_once(self, content_type: str, work: Callable[[], bytes]) -> Answer:
        body, _ = self._pacer.run(work)
        return Answer(HTTPStatus.OK, content_type, iter((body,)))


def failure(status: HTTPStatus) -> Answer:
    """Return the answer to a request that cannot be carried out."""
    return Answer(status, TEXT, iter((f"{status.value} {status.phrase}\n".encode(),)))
