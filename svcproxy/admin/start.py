"""Starts the admin server of a daemon."""

from collections.abc import Callable

from svcproxy.admin.pages import AdminPages, Sources
from svcproxy.admin.server import AdminServer


def start_admin_server(path: str, sources: Sources) -> Callable[[], None]:
    """Serve the admin socket at ``path``; return what stops it. An empty path disables it."""
    if not path:
        return lambda: None
    server = AdminServer(path, AdminPages(sources).answer)
    server.start()
    return server.stop
