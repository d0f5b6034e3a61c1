"""Connects the admin server to the parts of the daemon."""

from collections.abc import Callable, Sequence
from typing import Any

from svcproxy.admin.journal import Journal
from svcproxy.admin.pages import AdminPages, Sources
from svcproxy.admin.server import AdminServer
from svcproxy.admin.status import About, StatusSource
from svcproxy.kube.source import Source
from svcproxy.observe import exposition, log
from svcproxy.observe.metrics import Metrics
from svcproxy.sync.loop import FamilyLoop


def serve_admin(
    about: About,
    loops: Sequence[FamilyLoop[Any, Any]],
    source: Source,
    journal: Journal,
    metrics: Metrics,
) -> Callable[[], None]:
    """Serve the admin socket, unless the flags disable it; return what stops it.

    Args:
        about: what does not change while the daemon runs.
        loops: the loops of all families.
        source: the source of the objects.
        journal: the repairs.
        metrics: the metrics.
    """
    path = about.config.admin_socket
    if not path:
        return lambda: None
    sources = Sources(
        StatusSource(about, loops, source.watches),
        tuple(loop.state for loop in loops),
        journal,
        metrics=lambda: exposition.render(metrics.registry).body,
        log=log.recent,
    )
    server = AdminServer(path, AdminPages(sources).answer)
    server.start()
    return server.stop
