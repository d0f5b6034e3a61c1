"""The values that routes take and return: a page request and a reply. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request as a route sees it.

    ``path`` excludes the query string. ``query`` has the first value of each query parameter.
    ``headers`` has names in lower case; values of a repeated header are joined by commas.
    ``body`` is that of a PUT, and empty for other methods.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return the value of a header, case-insensitively by name; empty if it was not sent."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; ``headers`` are those in addition to the standard ones."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[PageRequest], Reply]
"""Answers a request. Quick routes run in the server's thread, all others in a worker thread."""

TEXT = "text/plain; charset=utf-8"


def not_found(text: str = "404 page not found") -> Reply:
    """Return a 404 reply with this text."""
    return Reply(HTTPStatus.NOT_FOUND, TEXT, f"{text}\n".encode())
