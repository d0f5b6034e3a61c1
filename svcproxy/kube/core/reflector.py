"""List and watch as a state machine without I/O: what to ask next, and what an answer means.

A ``Reflector`` follows the objects of one kind. Its driver sends what ``request`` asks for and
hands the answer to ``page``, ``lines``, ``refused`` or ``broken``; each gives an ``Output``: what
became of the objects, and how to go on. The rules are client-go's (``reflector.go``):

* The first state comes as a stream (WatchList, KEP-3157) that a bookmark completes, or, from
  servers without it, as a paged list; then a watch goes on from there.
* A lost watch resumes at the last resourceVersion seen; only 410 Gone, or an error the server
  does not call temporary, makes a new list.
* A new list removes the names it lacks, once it is complete. Nothing else removes an object except
  its DELETED event: an API server that cannot be reached changes nothing.

client-go does not have these rules:

* A new list delivers every object that the previous list did not contain byte for byte. Equal
  resourceVersions are not enough: an etcd that was restored from a backup can assign one a second
  time, to other content. First lists and watches do not pay for that comparison.
* An answer has to be a list of the right kind. A proxy or a server in maintenance may answer with
  status 200 and any JSON.
* An empty list of Services or EndpointSlices is believed only if a second, consistent list is
  empty as well: every cluster has the Service ``default/kubernetes``.
"""

from collections.abc import Sequence
from enum import Enum
from sys import intern

import msgspec

from svcproxy import limits
from svcproxy.kube.core import decoding, wire
from svcproxy.kube.core.decoding import usable_version
from svcproxy.kube.core.lines import LongLine
from svcproxy.kube.core.outputs import (
    Cause,
    Changed,
    Listed,
    Malformed,
    Output,
    Removed,
    Request,
    Selectors,
    Step,
)
from svcproxy.kube.core.wire import ParseError
from svcproxy.model.names import Kind, NamespacedName

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_GONE = 410
_TOO_MANY_REQUESTS = 429
_BAD_REQUEST = 400
_UNPROCESSABLE = 422
_SERVER_ERROR = 500
_NEVER_EMPTY = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})
_MESSAGE_CHARACTERS = 1024


class _Phase(Enum):
    BEGIN = "begin"
    PAGES = "pages"
    STREAM = "stream"
    WATCH = "watch"


class Reflector:
    """Follows the objects of one kind.

    Args:
        kind: the kind of the objects.
        selectors: which of them to ask for.
        page_size: how many objects a page of a list holds.
        watch_list: whether to ask for the initial state as a stream first.
    """

    def __init__(
        self,
        kind: Kind,
        selectors: Selectors | None = None,
        *,
        page_size: int = 500,
        watch_list: bool = True,
    ) -> None:
        self._kind = kind
        self._kind_name = str(kind)  # compared for every object, and faster to compare
        self._selectors = selectors or Selectors()
        self._page_size = page_size
        self._limit = page_size
        self._paged = True
        self._watch_list = watch_list
        self._phase = _Phase.BEGIN
        self._version = ""
        self._token = ""
        # The resourceVersion of each object, or a hash of its bytes if it came with a new list
        self._known: dict[NamespacedName, str | int] = {}
        self._seen: set[NamespacedName] = set()
        # The names that the last output removed; the consumer may have failed to take it
        self._removed: list[NamespacedName] = []
        self._listed = False
        self._doubted = False
        # Whether the next list has to be a paged one
        self._plainly = False
        self._unreadable_at: str | None = None

    def request(self) -> Request:
        """Say what to send next."""
        if self._phase is _Phase.BEGIN:
            streams = self._watch_list and not self._plainly
            self._phase = _Phase.STREAM if streams else _Phase.PAGES
            self._token = ""
            self._version = ""
        if self._phase is not _Phase.PAGES or not self._token:
            self._seen.clear()
        query = self._selection()
        if self._phase is _Phase.PAGES:
            if self._paged:
                query.append(("limit", str(self._limit)))
            if self._token:
                query.append(("continue", self._token))
            size = limits.LIST_PAGE_BYTES if self._paged else limits.LIST_BYTES
            return Request(watch=False, initial=False, query=tuple(query), body_limit=size)
        query += [("watch", "true"), ("allowWatchBookmarks", "true")]
        initial = self._phase is _Phase.STREAM
        if initial:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        else:
            query.append(("resourceVersion", self._version))
        return Request(watch=True, initial=initial, query=tuple(query))

    def page(self, body: bytes) -> Output:
        """Take the body of a successful list request."""
        self._removed.clear()
        try:
            page = decoding.decode_page(self._kind, body)
            token = page.metadata.continue_token or ""
            if token and token == self._token:
                raise ParseError("metadata.continue", "is the token that was sent")  # noqa: TRY301
        except ParseError as error:
            self._phase = _Phase.BEGIN
            return Output(step=Step.BACK_OFF, trouble=f"unreadable list: {error}")
        output = Output()
        for raw in page.items or ():
            self._take(raw, output)
        self._limit = min(self._page_size, self._limit * 2)
        self._token = token
        if not token:
            self._version = page.metadata.resource_version or ""
            self._complete(output)
        return output

    def too_large(self, reason: str) -> Output:
        """Handle a page that exceeded ``body_limit``: ask for fewer objects at once."""
        if self._paged and self._limit > 1:
            self._limit //= 2
            return Output(trouble=f"{reason}; asking for {self._limit} objects at once")
        self._paged = True
        self._phase = _Phase.BEGIN
        return Output(step=Step.BACK_OFF, trouble=reason)

    def lines(self, lines: Sequence[bytes | LongLine]) -> Output:
        """Handle complete lines of a watch stream; stop at the first that ends the stream."""
        self._removed.clear()
        output = Output()
        for line in lines:
            if not isinstance(line, bytes):
                self._long_line(line, output)
                continue
            try:
                event = decoding.decode_event(line)
            except ParseError as error:
                self._broken_line(line, error, output)
            else:
                self._event(event, output)
            if output.step is not Step.GO_ON:
                break
        return output

    def refused(self, status: int, body: bytes) -> Output:
        """Take an HTTP status other than 200, with its body."""
        account = decoding.decode_status(body)
        message = account.message or ""
        if self._simplify(status, message):
            return Output(
                step=Step.AGAIN, trouble=f"HTTP {status}: {message}; sending a simpler request"
            )
        return self._failed(status, account)

    def broken(self, cause: Cause, detail: str = "") -> Output:
        """Take the end of a response, or the failure to get one."""
        if self._phase is _Phase.WATCH:
            if cause is Cause.CLOSED:
                return Output(step=Step.AGAIN)
            step = Step.AGAIN if cause is Cause.IDLE else Step.BACK_OFF
            return Output(step=step, trouble=detail or cause.value, restarted=cause.value)
        if self._phase is _Phase.STREAM:
            self._phase = _Phase.BEGIN
            if cause is not Cause.CUT:
                # The end of the initial events never came: the server does not know
                # sendInitialEvents and has ignored it.
                self._watch_list = False
                return Output(step=Step.AGAIN, trouble="no end of initial events; listing instead")
        return Output(step=Step.BACK_OFF, trouble=detail or cause.value)

    def forget(self) -> None:
        """Start over after the consumer failed: deliver again what the last output may have lost.

        The new list delivers every object, and repeats the removals of the last output.
        """
        self._phase = _Phase.BEGIN
        self._known = dict.fromkeys((*self._known, *self._removed), "")

    def _selection(self) -> list[tuple[str, str]]:
        query = []
        if self._selectors.labels:
            query.append(("labelSelector", self._selectors.labels))
        if self._selectors.fields:
            query.append(("fieldSelector", self._selectors.fields))
        return query

    def _event(self, event: wire.WatchEvent, output: Output) -> None:
        match event.type:
            case "ADDED" | "MODIFIED":
                self._version = self._take(event.object, output) or self._version
            case "DELETED":
                self._drop(event.object, output)
            case "BOOKMARK":
                self._bookmark(event.object, output)
            case "ERROR":
                account = decoding.decode_status(event.object)
                failed = self._failed(account.code or _SERVER_ERROR, account)
                output.step, output.trouble = failed.step, failed.trouble
                output.restarted = failed.restarted
            case _:
                self._unreadable(f"unknown watch event {event.type[:40]!r}", output)

    def _broken_line(self, line: bytes, error: ParseError, output: Output) -> None:
        if line.strip() and not self._name_only(line, f"unreadable: {error}", output):
            self._unreadable(f"unreadable watch event: {error}", output)

    def _long_line(self, line: LongLine, output: Output) -> None:
        reason = f"its watch event is longer than {limits.WATCH_LINE_BYTES} bytes"
        if not self._name_only(line.head, reason, output):
            output.effects.append(Malformed(None, "", reason))

    def _unreadable(self, trouble: str, output: Output) -> None:
        """End a watch whose server sends something other than events."""
        output.step, output.restarted, output.trouble = Step.BACK_OFF, "unreadable", trouble
        if self._phase is _Phase.STREAM or self._unreadable_at == self._version:
            # Resuming would give the same answer again, a paged list does not.
            self._phase = _Phase.BEGIN
            self._plainly = True
        self._unreadable_at = self._version

    def _name_only(self, head: bytes, reason: str, output: Output) -> bool:
        """Handle an event of which only the head can be read, which is enough for a deletion.

        Returns:
            Whether it is an event of an object.
        """
        type_, identity = decoding.decode_head(head)
        if type_ not in {"ADDED", "MODIFIED", "DELETED"}:
            return False
        self._version = usable_version(identity.resource_version) or self._version
        name = _name(identity)
        if name is not None and type_ == "DELETED":
            self._remove(name, output)
            return True
        if name is not None:
            self._known[name] = ""
            if self._phase is not _Phase.WATCH:
                self._seen.add(name)
        output.effects.append(Malformed(name, "", reason))
        return True

    def _take(self, raw: msgspec.Raw, output: Output) -> str:
        """Handle one object; return its resourceVersion, empty if it cannot be read."""
        obj: wire.WireObject | None = None
        # Not the exception itself: its traceback refers to this frame, which would be a cycle.
        problem: tuple[str, str] | None = None
        metadata: wire.ObjectMeta | wire.Identity
        try:
            obj = decoding.decode_object(self._kind, raw)
            metadata, kind = obj.metadata, obj.kind
        except ParseError as error:
            metadata, problem = decoding.decode_identity(raw), (error.field, error.reason)
            kind = metadata.kind
        if kind is not None and kind != self._kind_name:
            obj, problem = None, self._other_kind(kind)
        version = usable_version(metadata.resource_version)
        name = _name(metadata)
        if name is None:
            problem = problem or ("metadata.name", "is missing")
            output.effects.append(Malformed(None, *problem))
            return version
        if self._phase is not _Phase.WATCH:
            self._seen.add(name)
        state: str | int = version
        if self._listed and self._phase is not _Phase.WATCH:
            state = decoding.fingerprint(raw)
        if version and self._known.get(name) == state:
            return version
        self._known[name] = state
        if obj is not None:
            output.effects.append(Changed(name, obj))
        elif problem is not None:
            output.effects.append(Malformed(name, *problem))
        return version

    def _drop(self, raw: msgspec.Raw, output: Output) -> None:
        identity = decoding.decode_identity(raw)
        self._version = usable_version(identity.resource_version) or self._version
        name = _name(identity)
        if identity.kind is not None and identity.kind != self._kind:
            output.effects.append(Malformed(name, *self._other_kind(identity.kind)))
        elif name is not None:
            self._remove(name, output)

    def _remove(self, name: NamespacedName, output: Output) -> None:
        self._seen.discard(name)
        self._known.pop(name, None)
        self._removed.append(name)
        output.effects.append(Removed(name))

    def _other_kind(self, kind: str) -> tuple[str, str]:
        return "kind", f"{kind[:40]!r} is not {self._kind}"

    def _bookmark(self, raw: msgspec.Raw, output: Output) -> None:
        try:
            metadata = decoding.decode_metadata(raw)
        except ParseError:
            return
        self._version = usable_version(metadata.resource_version) or self._version
        if self._phase is not _Phase.STREAM:
            return
        if (metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true":
            if usable_version(metadata.resource_version):
                self._complete(output)
            else:
                self._unreadable("end of initial events without resourceVersion", output)
        else:
            # A server that knows sendInitialEvents sends no other bookmark before that one.
            output.step = self.broken(Cause.CLOSED).step
            output.trouble = "no end of initial events; listing instead"

    def _complete(self, output: Output) -> None:
        """End a full list: what it did not name is gone."""
        if self._is_doubtful():
            self._doubted = self._plainly = True
            self._phase = _Phase.BEGIN
            output.step = Step.SECOND_LOOK
            return
        for name in [name for name in self._known if name not in self._seen]:
            self._remove(name, output)
        self._seen.clear()
        self._paged = self._listed = True
        self._doubted = self._plainly = False
        self._unreadable_at = None
        self._phase = _Phase.WATCH
        output.effects.append(Listed(len(self._known)))

    def _is_doubtful(self) -> bool:
        """Whether a list that should never be empty is empty, and for the first time."""
        if self._seen or self._doubted or self._kind not in _NEVER_EMPTY:
            return False
        return bool(self._known) or not self._listed

    def _simplify(self, status: int, message: str) -> bool:
        """Drop a parameter that old servers do not know; return whether there was one left."""
        if status not in {_BAD_REQUEST, _UNPROCESSABLE}:
            return False
        blames_fields = "field label" in message or "field selector" in message.lower()
        if self._phase is _Phase.STREAM and not blames_fields:
            self._watch_list = False
        elif self._selectors.optional and self._selectors.fields and status == _BAD_REQUEST:
            self._selectors = Selectors(labels=self._selectors.labels)
        else:
            return False
        self._phase = _Phase.BEGIN
        return True

    def _failed(self, status: int, account: wire.Status) -> Output:
        """Handle an HTTP status or an ERROR event that no simpler request avoids."""
        reason = account.message or account.reason or "no reason given"
        detail = f"HTTP {status}: {reason[:_MESSAGE_CHARACTERS]}"
        watching = self._phase is _Phase.WATCH
        if status == _GONE:
            if self._phase is _Phase.PAGES:
                # The token expired between two pages; a list in one piece needs no token.
                self._paged = False
            self._phase = _Phase.BEGIN
            return Output(step=Step.AGAIN, trouble=detail, restarted="gone" if watching else "")
        future = (account.message or "").startswith("Too large resource version")
        temporary = status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR or status in {401, 403}
        if self._phase is _Phase.STREAM or future or not temporary:
            # The server's data may be older than what we know (an etcd restored from a backup):
            # only a new list is consistent with it.
            self._phase = _Phase.BEGIN
        restarted = "refused" if watching else ""
        return Output(step=Step.BACK_OFF, trouble=detail, restarted=restarted)


def _name(metadata: wire.ObjectMeta | wire.Identity) -> NamespacedName | None:
    if not metadata.name:
        return None
    return NamespacedName(intern(metadata.namespace or ""), metadata.name)
