"""Answers one request to the fake API server."""

import gzip
import json
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from testbed.apiserver.store import RESOURCES, Selector, Store, Stored, Table, translate

_KINDS = {resource.path: kind for kind, resource in RESOURCES.items()}
_REASONS = {400: "BadRequest", 401: "Unauthorized", 404: "NotFound", 410: "Expired", 422: "Invalid"}
_COMPRESSED_FROM = 128 * 1024
_BATCH = 256 * 1024


@dataclass
class Behaviour:
    """Features and faults of the server; tests change them while it runs."""

    watch_list: bool = True  # support sendInitialEvents; otherwise answer it with 422
    ignore_watch_list: bool = False  # ignore sendInitialEvents, as very old servers do
    field_selectors: bool = True  # support spec.clusterIP as a field; otherwise answer with 400
    gone_as_event: bool = True  # report "too old" to a watch by an event; otherwise by HTTP 410
    bookmark_seconds: float = 60.0
    watch_seconds: float | None = (
        None  # end watches after this time, regardless of the requested time-out
    )
    token: str | None = None  # require this bearer token
    delay: float = 0.0  # wait before answering any request
    stall: bool = False  # send nothing at all, but keep connections open
    refused: dict[str, int] = field(default_factory=dict)  # the status of requests for a kind
    status: int = 0  # answer every request with this HTTP status
    body: bytes | None = None  # answer requests that are not refused with 200 and this body
    body_headers: bytes = b""  # additional header lines for that body
    compact_between_pages: bool = False  # let the token of a page expire before the next
    compress: bool = True  # gzip large lists for clients that accept it
    answers: dict[str, bytes] = field(default_factory=dict)  # the body for requests for a kind
    padding: int = 0  # the number of spaces before every list: compressed, a gzip bomb
    trickle: float = 0.0  # a pause after every byte of a list


@dataclass(frozen=True)
class Received:
    """A request as the server saw it; ``kind`` is empty for unknown paths."""

    kind: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    method: str = "GET"

    @property
    def verb(self) -> str:
        """``list`` or ``watch``, or for a ``POST`` ``create``."""
        if self.method == "POST":
            return "create"
        return "watch" if self.query.get("watch") in {"true", "1"} else "list"


@dataclass(eq=False)
class ApiConnection:
    """A client's connection, which another thread may mark as dead."""

    sock: socket.socket
    dead: bool = False
    mute: bool = False  # half-open: nothing more is sent, but it is not closed
    sent: int = 0
    thread: threading.Thread = field(default_factory=threading.Thread)


def read_request(reader: BinaryIO) -> Received | None:
    """Read the head of a request; ``None`` at the end of the connection."""
    line = reader.readline()
    if not line.strip():
        return None
    target = urlsplit(line.split()[1].decode())
    headers = {}
    while (header := reader.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    # Skip the body: the next request follows it.
    reader.read(int(headers.get("content-length") or 0))
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    method = line.split()[0].decode()
    return Received(_KINDS.get(target.path, ""), target.path, query, headers, method)


class Exchange:
    """Answers one request on a connection."""

    def __init__(
        self, store: Store, behaviour: Behaviour, connection: ApiConnection, request: Received
    ) -> None:
        self._store = store
        self._behaviour = behaviour
        self._connection = connection
        self._request = request
        self._selector = Selector.parse(
            request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        )

    def answer(self) -> None:
        """Send the whole answer; for a watch, this returns when the watch ends.

        Raises:
            OSError: either side has closed the connection.
        """
        if self._behaviour.delay:
            time.sleep(self._behaviour.delay)
        refusal = self._refusal()
        if refusal is not None:
            self._send_status(*refusal)
        elif self._behaviour.body is not None:
            self._send_body(200, self._behaviour.body, self._behaviour.body_headers)
        elif (answer := self._behaviour.answers.get(self._request.kind)) is not None:
            self._send_body(200, answer)
        elif self._request.verb == "watch":
            self._watch(self._store.tables[self._request.kind])
        else:
            self._list()

    def _refusal(self) -> tuple[int, str] | None:
        behaviour, query = self._behaviour, self._request.query
        authorization = self._request.headers.get("authorization")
        if status := behaviour.status or behaviour.refused.get(self._request.kind, 0):
            return status, "refused by the test"
        if behaviour.token and authorization != f"Bearer {behaviour.token}":
            return 401, "Unauthorized"
        if not self._request.kind:
            return 404, "the server could not find the requested resource"
        if "spec.clusterIP" in query.get("fieldSelector", "") and not behaviour.field_selectors:
            return 400, 'Unable to find "/v1, Resource=services": field label not supported: x'
        if query.get("sendInitialEvents") and not behaviour.watch_list:
            return 422, "sendInitialEvents is forbidden for watch"
        return None

    def _list(self) -> None:
        query = self._request.query
        limit = int(query.get("limit", 0))
        begin, version = 0, 0
        if token := query.get("continue"):
            version, begin = (int(part) for part in token.split(":"))
            if version < self._store.tables[self._request.kind].compacted:
                self._send_status(410, "The provided continue parameter is too old")
                return
        version, items = self._store.snapshot(self._request.kind, self._selector, version)
        end = begin + limit if limit else len(items)
        metadata = {"resourceVersion": str(version)}
        if end < len(items):
            metadata["continue"] = f"{version}:{end}"
        resource = RESOURCES[self._request.kind]
        if end < len(items) and self._behaviour.compact_between_pages:
            self._store.advance()
        head = json.dumps(
            {
                "kind": f"{resource.kind}List",
                "apiVersion": resource.api_version,
                "metadata": metadata,
            }
        ).encode()
        body = b",".join(stored.body for stored in items[begin:end])
        padding = b" " * self._behaviour.padding
        self._send_body(200, b"".join((padding, head[:-1], b',"items":[', body, b"]}")))

    def _watch(self, table: Table) -> None:
        query = self._request.query
        version = int(query.get("resourceVersion") or 0)
        too_old = 0 < version < table.compacted
        if too_old and not self._behaviour.gone_as_event:
            self._send_status(410, f"too old resource version: {version}")
            return
        self._send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        if too_old:
            self._send_events([("ERROR", _status(410, f"too old resource version: {version}"))])
        else:
            if not version:
                version = self._send_initial(table)
            self._follow(table, version)
        self._send(b"0\r\n\r\n")

    def _send_initial(self, table: Table) -> int:
        version, items = self._store.snapshot(table.resource.kind, self._selector)
        self._send_events(("ADDED", stored.body) for stored in items)
        wanted = self._request.query.get("sendInitialEvents") == "true"
        if wanted and not self._behaviour.ignore_watch_list:
            self._send_events([("BOOKMARK", _bookmark(table, version, end=True))])
        return version

    def _follow(self, table: Table, version: int) -> None:
        """Send events when they happen, and a bookmark after a while without events."""
        seconds = self._behaviour.watch_seconds or float(self._request.query["timeoutSeconds"])
        ends = time.monotonic() + seconds
        bookmark_at = time.monotonic() + self._behaviour.bookmark_seconds
        while not self._connection.dead and time.monotonic() < ends:
            with table.changed:
                if not (table.events and table.events[-1].version > version):
                    table.changed.wait(max(0.0, min(bookmark_at, ends) - time.monotonic()))
                lost = version < table.trimmed
                if version < table.compacted and not table.events:
                    version = table.compacted
                begin = bisect_right(table.events, version, key=lambda event: event.version)
                events = table.events[begin:]
            if lost:
                gone = _status(410, f"too old resource version: {version}")
                self._send_events([("ERROR", gone)])
                return
            if events:
                version = events[-1].version
                found = [translate(event, self._selector) for event in events]
                self._send_events((type_, stored.body) for type_, stored in filter(None, found))
            if time.monotonic() >= bookmark_at:
                bookmark_at = time.monotonic() + self._behaviour.bookmark_seconds
                version = max(version, self._quiet_version(table, version))
                self._send_events([("BOOKMARK", _bookmark(table, version, end=False))])

    def _quiet_version(self, table: Table, version: int) -> int:
        """Return the version up to which all events of this table have been sent."""
        now = self._store.version
        with table.changed:
            behind = table.events and table.events[-1].version > version
            return version if behind else now

    def _send_events(self, events: Iterable[tuple[str, bytes]]) -> None:
        batch: list[bytes] = []
        size = 0
        for type_, body in events:
            line = b'{"type":"%s","object":%s}\n' % (type_.encode(), body)
            batch.append(b"%x\r\n%s\r\n" % (len(line), line))
            size += len(line)
            if size > _BATCH:
                self._send(b"".join(batch))
                batch, size = [], 0
        if batch:
            self._send(b"".join(batch))

    def _send_status(self, code: int, message: str) -> None:
        self._send_body(code, _status(code, message))

    def _send_body(self, code: int, body: bytes, extra: bytes = b"") -> None:
        accepts = "gzip" in self._request.headers.get("accept-encoding", "")
        if self._behaviour.compress and accepts and not extra and len(body) > _COMPRESSED_FROM:
            body = gzip.compress(body, compresslevel=1)
            extra = b"Content-Encoding: gzip\r\n"
        self._send(
            b"HTTP/1.1 %d Answer\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
            % (code, extra, len(body))
        )
        while self._behaviour.trickle and body:
            self._send(body[:1])
            body = body[1:]
            time.sleep(self._behaviour.trickle)
        self._send(body)

    def _send(self, data: bytes) -> None:
        while (self._behaviour.stall or self._connection.mute) and not self._connection.dead:
            time.sleep(0.01 if self._behaviour.stall else 0.1)
        if self._connection.dead:
            raise ConnectionAbortedError
        self._connection.sock.sendall(data)
        self._connection.sent += len(data)


def _status(code: int, message: str) -> bytes:
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, "InternalError"),
        "code": code,
    }
    return json.dumps(status).encode()


def _bookmark(table: Table, version: int, *, end: bool) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    obj: dict[str, Any] = {
        "kind": table.resource.kind,
        "apiVersion": table.resource.api_version,
        "metadata": metadata,
    }
    if table.resource.kind == "EndpointSlice":
        obj |= {"addressType": "", "endpoints": None, "ports": None}
    return json.dumps(obj).encode()


__all__ = ["ApiConnection", "Behaviour", "Exchange", "Received", "Stored", "read_request"]
