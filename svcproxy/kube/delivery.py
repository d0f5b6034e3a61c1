"""From decoded objects to the sink: parsing, and what is said about those that fail."""

import structlog

from svcproxy.kube.parse import ParseError, parse_object
from svcproxy.kube.source import Sink
from svcproxy.kube.wire import WireObject
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, Problem

_log = structlog.get_logger()


def parse_safely(obj: WireObject) -> ApiObject | None:
    """Parse an object so that no content of it can end the thread.

    Raises:
        ParseError: the object is malformed, or the parser itself failed on it.
    """
    try:
        return parse_object(obj)
    except ParseError:
        raise
    except Exception as error:
        _log.exception("parser.failed", name=obj.metadata.name, namespace=obj.metadata.namespace)
        raise ParseError("", f"internal error: {type(error).__name__}: {error}") from error


class Delivery:
    """Passes the objects of one kind to a sink, and every distinct problem once.

    A problem is repeated only after its object was good or gone in between. A malformed object
    is not deleted: its last good state stays in force.

    Args:
        kind: the kind of the objects.
        sink: who receives them.
    """

    def __init__(self, kind: Kind, sink: Sink) -> None:
        self._kind = kind
        self._sink = sink
        self._problems: dict[NamespacedName | None, Problem] = {}

    def present(self, name: NamespacedName, obj: WireObject) -> None:
        """Pass on the present state of an object, or that it is none of ours any more."""
        try:
            parsed = parse_safely(obj)
        except ParseError as error:
            self.malformed(name, error.field, error.reason)
            return
        self._problems.pop(name, None)
        if parsed is None:
            self._sink.delete(self._kind, name)
        else:
            self._sink.update(parsed)

    def absent(self, name: NamespacedName) -> None:
        """Pass on that an object is gone."""
        self._problems.pop(name, None)
        self._sink.delete(self._kind, name)

    def malformed(self, name: NamespacedName | None, field: str, reason: str) -> None:
        """Pass on that an object cannot be used, unless that was said last time too."""
        problem = Problem(self._kind, name, field, reason)
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            self._sink.rejected(problem)
