"""The interface for recording Events, and an implementation that only logs them.

The implementation that sends Events to the API is ``events.KubernetesEvents``. It is a module of its
own because it needs the HTTP client, which is not loaded without an API server.
"""

from typing import Protocol

import structlog

from svcproxy.model.names import NamespacedName

_log = structlog.get_logger(__name__)


class EventRecorder(Protocol):
    """Reports what happened to the users of the cluster. Calls never block and never fail."""

    def service(
        self,
        name: NamespacedName,
        reason: str,
        note: str,
        *,
        warning: bool = True,
        action: str = "Sync",
    ) -> None:
        """Record an Event about a Service.

        A note that is true for one node only must name the node: equal notes about the same Service
        count as one Event, whichever node records them.

        Args:
            name: the Service.
            reason: a machine-readable reason in CamelCase.
            note: a sentence for people.
            warning: whether the type is Warning; otherwise it is Normal.
            action: the action that was taken or failed, in CamelCase.
        """

    def node(
        self, reason: str, note: str, *, warning: bool = False, action: str = "StartKubeProxy"
    ) -> None:
        """Record an Event about this node; the arguments are those of ``service``."""

    def stop(self) -> None:
        """Stop sending, and wait at most a second for a request that is in flight."""


class LoggingRecorder:
    """An ``EventRecorder`` for use without an API server: it logs Events."""

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
        """Do nothing: there is nothing to stop."""


def _log_event(kind: str, name: str, reason: str, note: str, *, warning: bool, action: str) -> None:
    log = _log.info if warning else _log.debug
    log(
        "event",
        kind=kind,
        name=name,
        reason=reason,
        note=note,
        type="Warning" if warning else "Normal",
        action=action,
    )
