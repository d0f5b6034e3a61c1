"""The contract between sources of API objects and their consumer."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject, ObjectKey, Problem


class Sink(Protocol):
    """Receives the state of API objects. Methods are called from any thread and must not block.

    Calls are level-triggered: only the latest state of an object counts, and repeated calls have
    no effect.
    """

    def take(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        """Receive the new state of objects; ``None`` means deleted, or not to be proxied.

        Objects that arrived together are passed in one call, because each call takes locks.
        """

    def synced(self, kind: Kind) -> None:
        """Receive that the first complete list of a kind has been delivered.

        Called once for each kind, and again if the call failed. Nothing is programmed before all
        kinds are synced.
        """

    def rejected(self, problem: Problem) -> None:
        """Receive that an object was skipped because it is malformed.

        Its last valid state, if any, stays in force: a broken edit must not break traffic. Sources
        call this once for each distinct problem, not at every relist.
        """

    def restarted(self, kind: Kind, reason: str) -> None:
        """Receive that the watch of a kind was restarted, with the reason, for a metric."""


class WatchState(NamedTuple):
    """How far the watch of a kind is.

    Attributes:
        resource_version: that of the last list, event or bookmark; empty before the first list and
            for manifests.
        synced: whether the first list is complete.
        heard: when the source last got data, in seconds since 1970; 0 if never.
    """

    resource_version: str = ""
    synced: bool = False
    heard: float = 0.0


class Source(Protocol):
    """Delivers Services, EndpointSlices and this node's Node to a sink."""

    def start(self, sink: Sink) -> None:
        """Start delivering, in threads of the source, and return without waiting.

        Raises:
            SourceError: the source is unusable, because of an unreadable kubeconfig or a missing
                folder for example; the message is one line that names the remedy.
        """

    def watches(self) -> Mapping[Kind, WatchState]:
        """Return how far each kind is; safe from any thread."""

    def stop(self) -> None:
        """Stop delivering, and wait at most a second for the threads."""


class SourceError(Exception):
    """A source cannot be used; the message is one line that names the remedy."""


def one_line(error: BaseException) -> str:
    """Return the text of an exception in one line, or the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
