"""The contract between the sources of API objects and whoever consumes them."""

from collections.abc import Mapping
from typing import Protocol

from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject, ObjectKey, Problem


class Sink(Protocol):
    """Receives the state of API objects, from any thread; every call is cheap and never blocks.

    Calls are level-triggered: only the latest state of an object counts, repeating a call
    changes nothing.
    """

    def take(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        """Take the present state of objects; ``None`` for one that is gone, or was never known.

        All that arrived together comes in one call: each has a price of its own, in locks.
        """

    def synced(self, kind: Kind) -> None:
        """Learn that the first full list of this kind has been delivered whole.

        Called once per kind, and again if the call failed. Nothing is programmed before all kinds
        have been synced.
        """

    def rejected(self, problem: Problem) -> None:
        """Learn that a malformed object was skipped.

        The last good state of the same object, if any, stays in force: a broken edit must not
        break traffic. Sources call this once per distinct problem, not at every relist.
        """

    def restarted(self, kind: Kind, reason: str) -> None:
        """Learn that the watch of this kind had to be started anew, and why (for a metric)."""


class Source(Protocol):
    """Delivers Services, EndpointSlices and this node's Node to a Sink."""

    def start(self, sink: Sink) -> None:
        """Begin delivering, in threads of the source's own, and return at once.

        Raises:
            SourceError: the source cannot work at all (unreadable kubeconfig, no such folder);
                the message is one line that names the remedy.
        """

    def stop(self) -> None:
        """Stop delivering and wait, at most a second, for the source's threads."""


class SourceError(Exception):
    """A source cannot be used; the message is one line that names the remedy."""


def one_line(error: BaseException) -> str:
    """Give an exception's text in one line, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
