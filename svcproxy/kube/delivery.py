"""From decoded objects to the sink: parsing, and what is said about those that fail."""

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
    """Parse an object; a defect of the parser costs that object and not the thread.

    Raises:
        ParseError: the object is malformed, or the parser itself failed on it.
        MemoryError: memory ran out, which says nothing about the object.
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
    """Collects the objects of one kind for a sink, and passes on every distinct problem once.

    A problem is repeated only after its object was good or gone in between. A malformed object
    is not deleted: its last good state stays in force.

    Args:
        kind: the kind of the objects.
        sink: who receives them.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(self, kind: Kind, sink: Sink, annotations: frozenset[str] = frozenset()) -> None:
        self._kind = kind
        self._sink = sink
        self._annotations = annotations
        self._problems: dict[NamespacedName | None, Problem] = {}
        self._objects: dict[ObjectKey, ApiObject | None] = {}

    def present(self, name: NamespacedName, obj: WireObject) -> None:
        """Note the present state of an object, or that it is none of ours any more."""
        try:
            parsed = parse_safely(obj, self._annotations)
        except ParseError as error:
            self.malformed(name, error.field, error.reason)
            return
        self._problems.pop(name, None)
        self._objects[self._kind, name] = parsed

    def absent(self, name: NamespacedName) -> None:
        """Note that an object is gone."""
        self._problems.pop(name, None)
        self._objects[self._kind, name] = None

    def malformed(self, name: NamespacedName | None, field: str, reason: str) -> None:
        """Pass on that an object cannot be used, unless that was said last time too."""
        problem = Problem(self._kind, name, field, reason)
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            self._sink.rejected(problem)

    def deliver(self) -> None:
        """Pass on all that was noted since the last time."""
        if self._objects:
            objects, self._objects = self._objects, {}
            self._sink.take(objects)
