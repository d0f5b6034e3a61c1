"""What is asked over HTTP and what is answered, as values. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks: the path without the query, the query's fields, and the body of a PUT.

    A field that occurs twice keeps its first value. ``headers`` have names in lower case; the
    values of a repeated header are joined by commas.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return all values of a header as one list; empty if it was not sent."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a route answers; ``headers`` are those beside the usual ones."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Reply]
"""Answers a request. Quick ones run in the server's thread, all others in a worker's."""

TEXT = "text/plain; charset=utf-8"


def not_found(text: str = "404 page not found") -> Reply:
    """The answer for paths that lead nowhere."""
    return Reply(HTTPStatus.NOT_FOUND, TEXT, f"{text}\n".encode())
