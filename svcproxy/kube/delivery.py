"""Parses decoded objects, passes them to the sink, and reports those that cannot be parsed."""

import structlog

from svcproxy.kube.core.parse import ParseError, parse_object
from svcproxy.kube.core.validation import LimitExceededError
from svcproxy.kube.core.wire import WireObject
from svcproxy.kube.source import Sink
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, ObjectKey, Problem
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()


def parse_safely(obj: WireObject, annotations: frozenset[str] = frozenset()) -> ApiObject | None:
    """Parse an object. A defect in the parser affects this object only, not the thread.

    Raises:
        ParseError: the object is malformed, or the parser failed on it.
        MemoryError: memory ran out, which does not mean that the object is malformed.
    """
    try:
        return parse_object(obj, annotations)
    except LimitExceededError as error:
        REFUSALS.count("object", error.limit)
        raise
    except (ParseError, MemoryError):
        raise
    except Exception as error:
        _log.exception("parser.failed", name=obj.metadata.name, namespace=obj.metadata.namespace)
        raise ParseError("", f"internal error: {type(error).__name__}: {error}") from error


class Delivery:
    """Collects changed objects of one kind for a sink, and reports each distinct problem once.

    A problem is reported again only if the object was valid or deleted in between. A malformed
    object is not deleted: its last valid state stays in force.

    Args:
        kind: the kind of the objects.
        sink: receives the objects and the problems.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(self, kind: Kind, sink: Sink, annotations: frozenset[str] = frozenset()) -> None:
        self._kind = kind
        self._sink = sink
        self._annotations = annotations
        self._problems: dict[NamespacedName | None, Problem] = {}
        self._objects: dict[ObjectKey, ApiObject | None] = {}

    def changed(self, name: NamespacedName, obj: WireObject) -> None:
        """Store the new state of an object, which may be one that is not to be proxied."""
        try:
            parsed = parse_safely(obj, self._annotations)
        except ParseError as error:
            self.malformed(name, error.field, error.reason)
            return
        self._problems.pop(name, None)
        self._objects[self._kind, name] = parsed

    def removed(self, name: NamespacedName) -> None:
        """Store that an object was deleted."""
        self._problems.pop(name, None)
        self._objects[self._kind, name] = None

    def malformed(self, name: NamespacedName | None, field: str, reason: str) -> None:
        """Report that an object cannot be used, unless the same was reported last time."""
        problem = Problem(self._kind, name, field, reason)
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            self._sink.rejected(problem)

    def flush(self) -> None:
        """Pass all stored states to the sink."""
        if self._objects:
            objects, self._objects = self._objects, {}
            self._sink.take(objects)
