"""The page process: answers requests for pages until none has come for a while."""

import resource
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus

from svcproxy.admin.client import AdminClient, AdminError
from svcproxy.explain.core.service_detail import (
    UnknownServiceError,
    find_service,
    service_detail,
)
from svcproxy.explain.core.service_list import Observed
from svcproxy.explain.core.trace_arguments import (
    QuestionError,
    UnknownNameError,
    family_of,
    parse_origin,
    parse_target,
)
from svcproxy.explain.kernel_state import comparisons, kernel_objects
from svcproxy.explain.trace_packet import Asked, trace_packet
from svcproxy.limits import UI_IDLE_SECONDS, UI_MEMORY_BYTES, UI_PAGE_SECONDS
from svcproxy.runtime_tuning import collect_rarely
from svcproxy.ui.channel import ChannelClosedError, receive, send
from svcproxy.ui.core.errors import error_page
from svcproxy.ui.core.frame import Place
from svcproxy.ui.core.messages import Page, PageQuery
from svcproxy.ui.core.node import health_of
from svcproxy.ui.core.overview import overview
from svcproxy.ui.core.service_page import service_page, unknown_service
from svcproxy.ui.core.trace_page import trace_page
from svcproxy.ui.node_reader import NodeReader

Renderer = Callable[[NodeReader, PageQuery], tuple[int, bytes]]


def serve(channel: socket.socket, admin_socket: str, idle: float = UI_IDLE_SECONDS) -> None:
    """Answer requests until none has come for a while, or the daemon has ended.

    Args:
        channel: the socket that leads to the daemon.
        admin_socket: the path of the daemon's socket.
        idle: how long to wait for a request, in seconds.
    """
    _limit_memory()
    collect_rarely()
    reader = NodeReader(AdminClient(admin_socket, UI_PAGE_SECONDS))
    while True:
        try:
            query = receive(channel, PageQuery, idle)
            # If the daemon ends meanwhile, it cannot kill this process.
            signal.alarm(int(2 * UI_PAGE_SECONDS))
            page = answer(query, reader)
            send(channel, page, UI_PAGE_SECONDS)
            signal.alarm(0)
        except (ChannelClosedError, TimeoutError):
            return


def answer(query: PageQuery, reader: NodeReader) -> Page:
    """Return the page that is asked for, or one that says why there is none.

    A failed process is replaced, so memory that has run out is not handled here.
    """
    try:
        status, body = RENDERERS[query.path](reader, query)
    except AdminError as error:
        return Page(
            HTTPStatus.SERVICE_UNAVAILABLE, error_page("The daemon cannot be asked", str(error))
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a defect is reported, and affects one page only
        text = "This is a defect of svcproxy; its log has the details."
        body = error_page("The page cannot be rendered", text)
        return Page(HTTPStatus.INTERNAL_SERVER_ERROR, body, traceback.format_exc())
    return Page(status, body)


def _overview(reader: NodeReader, query: PageQuery) -> tuple[int, bytes]:
    health = health_of(query.health_status, query.health)
    return HTTPStatus.OK, overview(reader.snapshot(), health, query.query)


def _service(reader: NodeReader, query: PageQuery) -> tuple[int, bytes]:
    reading = reader.read()
    view = reading.view
    try:
        name = find_service(view, query.query.get("name", ""))
        observed = Observed(comparisons(reading.kernel))
        detail = service_detail(view, name, observed, kernel_objects(view, name, reading.kernel))
    except UnknownServiceError as error:
        place = Place(view.node, view.mode)
        return HTTPStatus.NOT_FOUND, unknown_service(place, str(error))
    return HTTPStatus.OK, service_page(detail)


def _trace(reader: NodeReader, query: PageQuery) -> tuple[int, bytes]:
    view = reader.read().view
    place = Place(view.node, view.mode, "trace")
    origin, target = query.query.get("from", "").strip(), query.query.get("to", "").strip()
    if not origin and not target:
        return HTTPStatus.OK, trace_page(place, "", "")
    try:
        asked = _asked(origin, target)
        found = trace_packet(view, asked)
        if found.document.kernel_differs:  # perhaps a change that the view does not have yet
            found = trace_packet(reader.view(), asked)
    except UnknownNameError as error:
        return HTTPStatus.NOT_FOUND, trace_page(place, origin, target, error=str(error))
    except QuestionError as error:
        return HTTPStatus.BAD_REQUEST, trace_page(place, origin, target, error=str(error))
    return HTTPStatus.OK, trace_page(place, origin, target, found.document)


def _asked(origin: str, target: str) -> Asked:
    """Return the question of the form.

    Pods are not looked up: the daemon's credentials for the API server are not for everyone who can
    read the metrics port.

    Raises:
        QuestionError: it is malformed, or names a pod.
    """
    source, destination = parse_origin(origin), parse_target(target)
    if source.pod is not None:
        raise QuestionError("FROM: the page does not look up pods: give the address of the pod")
    return Asked(source, destination, family_of(source, destination, None))


RENDERERS: Mapping[str, Renderer] = {"": _overview, "service": _service, "trace": _trace}
"""The function that renders each page, by its path below ``/ui/``."""


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = UI_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, UI_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
