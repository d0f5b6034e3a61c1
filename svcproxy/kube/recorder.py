"""Where Events go: the interface, and its form without an API server.

The one that sends them, ``events.KubernetesEvents``, stands apart because it needs the HTTP client,
which is of no use without an API server.
"""

from typing import Protocol

import structlog

from svcproxy.model.names import NamespacedName

_log = structlog.get_logger(__name__)


class EventRecorder(Protocol):
    """Tells the users of the cluster what happened; every call is cheap and never fails."""

    def service(
        self,
        name: NamespacedName,
        reason: str,
        note: str,
        *,
        warning: bool = True,
        action: str = "Sync",
    ) -> None:
        """Say something about a Service.

        A note that holds for one node only has to name that node: the same note about the same
        Service counts as one Event, whichever node says it.

        Args:
            name: the Service.
            reason: why, in one CamelCase word for machines.
            note: the sentence for people.
            warning: whether it is a Warning; otherwise it is Normal.
            action: what was tried, in one CamelCase word.
        """

    def node(
        self, reason: str, note: str, *, warning: bool = False, action: str = "StartKubeProxy"
    ) -> None:
        """Say something about this node; the arguments are as for ``service``."""

    def stop(self) -> None:
        """Send nothing any more, and wait at most a second for what is under way."""


class LogOnly:
    """An ``EventRecorder`` for when no API server is followed: Events become log lines."""

    def service(
        self,
        name: NamespacedName,
        reason: str,
        note: str,
        *,
        warning: bool = True,
        action: str = "Sync",
    ) -> None:
        """Log what happened to a Service."""
        _log_event("Service", str(name), reason, note, warning=warning, action=action)

    def node(
        self, reason: str, note: str, *, warning: bool = False, action: str = "StartKubeProxy"
    ) -> None:
        """Log what happened to this node."""
        _log_event("Node", "", reason, note, warning=warning, action=action)

    def stop(self) -> None:
        """Do nothing: nothing is under way."""


def _log_event(kind: str, name: str, reason: str, note: str, *, warning: bool, action: str) -> None:
    say = _log.info if warning else _log.debug
    say(
        "event",
        kind=kind,
        name=name,
        reason=reason,
        note=note,
        type="Warning" if warning else "Normal",
        action=action,
    )
