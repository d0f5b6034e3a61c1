"""What the admin socket answers, see ``core/protocol.py``."""

import math
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from threading import Semaphore
from typing import NamedTuple

import msgspec

from svcproxy import limits
from svcproxy.admin import objects
from svcproxy.admin.core.protocol import Status
from svcproxy.admin.journal import Journal
from svcproxy.admin.pacing import Pacer
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.observe.core.routes import TEXT
from svcproxy.state.desired import DesiredState

_JSON = "application/json"
_LINES = "application/jsonl"
_STEP_SECONDS = 1.0
_LARGEST_NUMBER = 2**53

Query = Mapping[str, str]


class Answer(NamedTuple):
    """An answer, in pieces; a piece is computed when it is asked for.

    An empty piece means that there is nothing to send yet: the server checks then whether the
    client is still there.
    """

    status: HTTPStatus
    content_type: str
    pieces: Iterator[bytes]


class Sources(NamedTuple):
    """Where the answers come from.

    Attributes:
        status: returns the state of the daemon.
        states: the desired state of each family.
        journal: the repairs.
        metrics: returns the metrics in the text format.
        log: returns the last lines of the log.
    """

    status: Callable[[], Status]
    states: tuple[DesiredState, ...]
    journal: Journal
    metrics: Callable[[], bytes]
    log: Callable[[], bytes]


class AdminPages:
    """Answers requests.

    Args:
        sources: where the answers come from.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._pacer = Pacer()
        self._waiting = Semaphore(limits.ADMIN_WAITING)
        self._pages: Mapping[str, Callable[[Query], Answer]] = {
            "/v1/status": self._status,
            "/v1/objects": self._objects,
            "/v1/repairs": self._repairs,
            "/v1/log": lambda _: self._at_once(TEXT, sources.log),
            "/v1/metrics": lambda _: self._at_once(TEXT, sources.metrics),
        }

    def answer(self, path: str, query: Query) -> Answer:
        """Return the answer to a GET request."""
        page = self._pages.get(path)
        if page is None:
            return failure(HTTPStatus.NOT_FOUND)
        try:
            return page(query)
        except ValueError:
            return failure(HTTPStatus.BAD_REQUEST)

    def _status(self, _query: Query) -> Answer:
        return self._at_once(_JSON, lambda: msgspec.json.encode(self._sources.status()))

    def _objects(self, query: Query) -> Answer:
        kind, states = Kind(query.get("kind", "")), self._sources.states
        if "service" in query:
            namespace, slash, name = query["service"].partition("/")
            if not slash:
                return failure(HTTPStatus.BAD_REQUEST)
            service = NamespacedName(namespace, name)
            found = objects.of_service(states, kind, service)
        else:
            found = objects.stored(states, kind)
        return Answer(HTTPStatus.OK, _LINES, objects.lines(found, self._pacer))

    def _repairs(self, query: Query) -> Answer:
        after, wait = int(query.get("after", "0")[:20]), float(query.get("wait", "0"))
        if not 0 <= after < _LARGEST_NUMBER or not wait >= 0:
            return failure(HTTPStatus.BAD_REQUEST)
        if not wait:
            return self._at_once(_JSON, lambda: self._encoded_repairs(after))
        if not self._waiting.acquire(blocking=False):
            return failure(HTTPStatus.SERVICE_UNAVAILABLE)
        return Answer(HTTPStatus.OK, _JSON, self._later_repairs(after, wait))

    def _later_repairs(self, after: int, wait: float) -> Iterator[bytes]:
        """Wait for a repair in steps; the caller must exhaust or close this."""
        try:
            for _ in range(math.ceil(min(wait, limits.ADMIN_WAIT_SECONDS) / _STEP_SECONDS)):
                if self._sources.journal.wait(after, min(wait, _STEP_SECONDS)):
                    break
                yield b""
            yield self._pacer.run(lambda: self._encoded_repairs(after))[0]
        finally:
            self._waiting.release()

    def _encoded_repairs(self, after: int) -> bytes:
        return msgspec.json.encode(self._sources.journal.after(after))

    def _at_once(self, content_type: str, work: Callable[[], bytes]) -> Answer:
        body, _ = self._pacer.run(work)
        return Answer(HTTPStatus.OK, content_type, iter((body,)))


def failure(status: HTTPStatus) -> Answer:
    """Return the answer to a request that cannot be carried out."""
    return Answer(status, TEXT, iter((f"{status.value} {status.phrase}\n".encode(),)))
