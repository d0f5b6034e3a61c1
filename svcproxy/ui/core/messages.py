"""The messages between the daemon and its page process. Pure."""

from collections.abc import Mapping

import msgspec

PATHS: Mapping[str, frozenset[str]] = {
    "": frozenset({"find", "only", "page"}),
    "service": frozenset({"name"}),
    "trace": frozenset({"from", "to"}),
}
"""The pages by their path below ``/ui/``, with the query parameters that they know."""


class PageQuery(msgspec.Struct, frozen=True):
    """A request for a page.

    Attributes:
        path: a key of ``PATHS``.
        query: the query parameters; only known ones.
        health_status: the HTTP status that ``/healthz`` answers now.
        health: the JSON that ``/healthz`` answers now.
    """

    path: str
    query: Mapping[str, str] = {}
    health_status: int = 200
    health: bytes = b"{}"


class Page(msgspec.Struct, frozen=True):
    """A rendered page.

    Attributes:
        status: its HTTP status.
        body: its HTML.
        defect: a traceback for the log if rendering failed; empty otherwise.
    """

    status: int
    body: bytes
    defect: str = ""
