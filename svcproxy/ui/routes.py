"""The routes of ``/ui`` on the metrics port: checks requests and passes them on."""

from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address

import structlog

from svcproxy.limits import UI_QUERY_CHARACTERS
from svcproxy.observe.core.routes import PageRequest, Reply, Route
from svcproxy.observe.health import ProbeResult
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.ui.core.errors import error_page
from svcproxy.ui.core.frame import STYLE
from svcproxy.ui.core.messages import PATHS, PageQuery
from svcproxy.ui.process import NoPageError, PageProcess

_log = structlog.get_logger()

ROOT = "/ui"
HTML = "text/html; charset=utf-8"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""The headers of every answer; kept here so that a page cannot change them."""


class UserInterface:
    """Answers requests below ``/ui``.

    Args:
        process: renders the pages; ``None`` if the admin socket is disabled.
        healthz: returns what ``/healthz`` answers.
        node_name: the name of this node; requests may name it as their host.
    """

    def __init__(
        self, process: PageProcess | None, healthz: Callable[[], ProbeResult], node_name: str
    ) -> None:
        self._process = process
        self._healthz = healthz
        self._hosts = frozenset({"localhost", node_name.lower()})
        self._defects = LogThrottle()

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes by path, for the metrics server."""
        return {ROOT: self._redirect, f"{ROOT}/": self._answer}

    def stop(self) -> None:
        """End the page process."""
        if self._process is not None:
            self._process.stop()

    def _redirect(self, request: PageRequest) -> Reply:
        if refused := self._refused(request):
            return refused
        headers = {**HEADERS, "Location": "ui/"}
        return Reply(HTTPStatus.TEMPORARY_REDIRECT, HTML, b"", headers)

    def _answer(self, request: PageRequest) -> Reply:
        if refused := self._refused(request):
            return refused
        path = request.path.removeprefix(f"{ROOT}/")
        if path == STYLE:
            return Reply(HTTPStatus.OK, "text/css; charset=utf-8", _style(), HEADERS)
        if path not in PATHS:
            return _error(HTTPStatus.NOT_FOUND, "No such page", "This page does not exist.")
        query = {name: text for name, text in request.query.items() if name in PATHS[path]}
        if any(len(text) > UI_QUERY_CHARACTERS for text in query.values()):
            text = f"A parameter is longer than {UI_QUERY_CHARACTERS} characters."
            return _error(HTTPStatus.BAD_REQUEST, "Not a valid request", text)
        return self._ask(path, query)

    def _refused(self, request: PageRequest) -> Reply | None:
        """Return an error unless the method and the host of the request are acceptable."""
        if request.method not in {"GET", "HEAD"}:
            reply = _error(HTTPStatus.METHOD_NOT_ALLOWED, "Not allowed", "Pages can only be read.")
            return Reply(
                reply.status, reply.content_type, reply.body, {**HEADERS, "Allow": "GET, HEAD"}
            )
        if not self._is_own_host(request.header("Host")):
            return _error(
                HTTPStatus.MISDIRECTED_REQUEST,
                "Unknown host name",
                "A web site could use a host name of its own to read this page in your browser.",
                "Open it by an IP address, as localhost, or by the name of the node.",
            )
        return None

    def _is_own_host(self, host: str) -> bool:
        """Whether a ``Host`` header names this node in a way that no web site can (DNS rebinding)."""
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") <= 1:
            name = name.partition(":")[0]
        if name in self._hosts or not name:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def _ask(self, path: str, query: Mapping[str, str]) -> Reply:
        if self._process is None:
            return _error(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "No pages",
                "The admin socket is disabled, and pages are made from what it says.",
                "Start svcproxy with --svcproxy-admin-socket.",
            )
        health = self._healthz()
        try:
            page = self._process.ask(PageQuery(path, query, health.status, health.body))
        except NoPageError as error:
            if self._defects.allow("no page"):
                _log.warning("ui.no_page", page=f"{ROOT}/{path}", reason=str(error))
            text = f"{str(error)[0].upper()}{str(error)[1:]}."
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "No page", text, "Try again.")
        if page.defect and self._defects.allow("defect"):
            _log.error("ui.defect", page=f"{ROOT}/{path}", trace=page.defect)
        return Reply(page.status, HTML, page.body, HEADERS)


def _error(status: HTTPStatus, title: str, text: str, remedy: str = "") -> Reply:
    return Reply(status, HTML, error_page(title, text, remedy), HEADERS)


@cache
def _style() -> bytes:
    return files("svcproxy.ui").joinpath(STYLE).read_bytes()
