"""Makes the pages of a daemon as its flags ask for."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from svcproxy.config import Config
from svcproxy.observe.core.routes import Route
from svcproxy.observe.health import ProbeResult
from svcproxy.ui.process import PageProcess, command
from svcproxy.ui.routes import UserInterface


class Pages(NamedTuple):
    """The routes of the metrics server for the pages, and what ends the page process."""

    routes: Mapping[str, Route]
    stop: Callable[[], None]


def make_pages(config: Config, healthz: Callable[[], ProbeResult], node_name: str) -> Pages:
    """Return the pages; without ``--svcproxy-ui`` there are no routes.

    Args:
        config: the settings.
        healthz: returns what ``/healthz`` answers.
        node_name: the name of this node.
    """
    if not config.ui:
        return Pages({}, lambda: None)
    process = PageProcess(command(config.admin_socket)) if config.admin_socket else None
    pages = UserInterface(process, healthz, node_name)
    return Pages(pages.routes, pages.stop)
