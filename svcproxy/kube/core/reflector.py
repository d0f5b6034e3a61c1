"""List and watch as a state machine without I/O.

A ``Reflector`` tracks the objects of one kind. Its driver sends the request that ``next_request``
returns and passes the answer to ``list_page``, ``watch_lines``, ``error_response`` or
``response_ended``. Each returns an ``Output``: the changed objects, and the next step. The rules are
those of client-go (``reflector.go``):

* The initial state is streamed (WatchList, KEP-3157) until a bookmark marks its end. Servers without
  WatchList send a paged list. A watch continues from there.
* An interrupted watch resumes at the last resourceVersion. Only 410 Gone, or an error that is not
  temporary, requires a new list.
* Objects that a complete new list does not contain are removed. Nothing else removes an object but
  its DELETED event, so an API server that cannot be reached changes nothing.

These rules are svcproxy's own:

* A new list delivers every object whose bytes differ from the previous list. Comparing
  resourceVersions is not enough: after etcd is restored from a backup, it can assign the same version
  to different content. First lists and watches are not compared this way.
* An answer counts as a list only if it has the right kind. A proxy, or a server in maintenance, may
  answer with status 200 and any JSON.
* An empty list of Services or EndpointSlices must be confirmed by a second, consistent list: every
  cluster has the Service ``default/kubernetes``.
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
    ApiRequest,
    Cause,
    Changed,
    Listed,
    Malformed,
    Output,
    Removed,
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
_EXPECTED_NONEMPTY = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})
_MESSAGE_CHARACTERS = 1024


class _Phase(Enum):
    BEGIN = "begin"
    PAGES = "pages"
    STREAM = "stream"
    WATCH = "watch"


class Reflector:
    """Tracks the objects of one kind.

    Args:
        kind: the kind of the objects.
        selectors: the selectors of list and watch requests.
        page_size: the number of objects in a page of a list.
        watch_list: whether to request the initial state as a stream first.
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
        self._kind_name = str(kind)  # compared for every object: a plain str compares faster
        self._selectors = selectors or Selectors()
        self._page_size = page_size
        self._page_limit = page_size
        self._paged = True
        self._watch_list = watch_list
        self._phase = _Phase.BEGIN
        self.version = ""  # the resourceVersion of the last list, event or bookmark
        self._token = ""
        # The resourceVersion of each object, or a hash of its bytes if it came with a relist
        self._versions: dict[NamespacedName, str | int] = {}
        self._seen: set[NamespacedName] = set()
        # The names that the last output removed, in case the consumer failed to process it
        self._removed: list[NamespacedName] = []
        self._has_listed = False
        self._saw_empty_list = False
        # Whether the next list must be a paged one
        self._force_paged_list = False
        self._unreadable_version: str | None = None

    def next_request(self) -> ApiRequest:
        """Return the next request to send."""
        if self._phase is _Phase.BEGIN:
            streams = self._watch_list and not self._force_paged_list
            self._phase = _Phase.STREAM if streams else _Phase.PAGES
            self._token = ""
            self.version = ""
        if self._phase is not _Phase.PAGES or not self._token:
            self._seen.clear()
        query = self._selectors.query()
        if self._phase is _Phase.PAGES:
            if self._paged:
                query.append(("limit", str(self._page_limit)))
            if self._token:
                query.append(("continue", self._token))
            size = limits.LIST_PAGE_BYTES if self._paged else limits.LIST_BYTES
            return ApiRequest(watch=False, initial=False, query=tuple(query), body_limit=size)
        query += [("watch", "true"), ("allowWatchBookmarks", "true")]
        initial = self._phase is _Phase.STREAM
        if initial:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        else:
            query.append(("resourceVersion", self.version))
        return ApiRequest(watch=True, initial=initial, query=tuple(query))

    def list_page(self, body: bytes) -> Output:
        """Process the response body of a successful list request."""
        self._removed.clear()
        try:
            page = decoding.decode_page(self._kind, body)
            token = page.metadata.continue_token or ""
            if token and token == self._token:
                raise ParseError("metadata.continue", "is the token of this page")  # noqa: TRY301
        except ParseError as error:
            self._phase = _Phase.BEGIN
            return Output(step=Step.BACK_OFF, warning=f"unreadable list: {error}")
        output = Output()
        for raw in page.items or ():
            self._handle_object(raw, output)
        self._page_limit = min(self._page_size, self._page_limit * 2)
        self._token = token
        if not token:
            self.version = page.metadata.resource_version or ""
            self._finish_list(output)
        return output

    def page_too_large(self, reason: str) -> Output:
        """Process a page larger than ``body_limit``: request fewer objects per page."""
        if self._paged and self._page_limit > 1:
            self._page_limit //= 2
            return Output(warning=f"{reason}; requesting {self._page_limit} objects per page")
        self._paged = True
        self._phase = _Phase.BEGIN
        return Output(step=Step.BACK_OFF, warning=reason)

    def watch_lines(self, lines: Sequence[bytes | LongLine]) -> Output:
        """Process complete lines of a watch; stop at the first line that ends the watch."""
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
            if output.step is not Step.CONTINUE:
                break
        return output

    def error_response(self, status: int, body: bytes) -> Output:
        """Process a response with an HTTP status other than 200."""
        status_object = decoding.decode_status(body)
        message = status_object.message or ""
        if self._drop_parameter(status, message):
            return Output(
                step=Step.RETRY_NOW, warning=f"HTTP {status}: {message}; sending a simpler request"
            )
        return self._handle_error(status, status_object)

    def response_ended(self, cause: Cause, detail: str = "") -> Output:
        """Process the end of a response, or the failure to get one."""
        if self._phase is _Phase.WATCH:
            if cause is Cause.CLOSED:
                return Output(step=Step.RETRY_NOW)
            step = Step.RETRY_NOW if cause is Cause.IDLE else Step.BACK_OFF
            return Output(step=step, warning=detail or cause.value, restarted=cause.value)
        if self._phase is _Phase.STREAM:
            self._phase = _Phase.BEGIN
            if cause is not Cause.CUT:
                # The end of the initial events never arrived: the server does not support
                # sendInitialEvents and ignored it.
                self._watch_list = False
                return Output(
                    step=Step.RETRY_NOW, warning="no end of initial events; listing instead"
                )
        return Output(step=Step.BACK_OFF, warning=detail or cause.value)

    def start_over(self) -> None:
        """Start over after the consumer failed, and deliver what the last output may have lost.

        The new list delivers every object, and the removals of the last output are repeated.
        """
        self._phase = _Phase.BEGIN
        self._versions = dict.fromkeys((*self._versions, *self._removed), "")

    def _event(self, event: wire.WatchEvent, output: Output) -> None:
        match event.type:
            case "ADDED" | "MODIFIED":
                self.version = self._handle_object(event.object, output) or self.version
            case "DELETED":
                self._handle_deleted(event.object, output)
            case "BOOKMARK":
                self._bookmark(event.object, output)
            case "ERROR":
                status_object = decoding.decode_status(event.object)
                failed = self._handle_error(status_object.code or _SERVER_ERROR, status_object)
                output.step, output.warning = failed.step, failed.warning
                output.restarted = failed.restarted
            case _:
                self._abandon_watch(f"unknown watch event {event.type[:40]!r}", output)

    def _broken_line(self, line: bytes, error: ParseError, output: Output) -> None:
        if line.strip() and not self._handle_head(line, f"unreadable: {error}", output):
            self._abandon_watch(f"unreadable watch event: {error}", output)

    def _long_line(self, line: LongLine, output: Output) -> None:
        reason = f"its watch event is longer than {limits.WATCH_LINE_BYTES} bytes"
        if not self._handle_head(line.head, reason, output):
            output.effects.append(Malformed(None, "", reason))

    def _abandon_watch(self, warning: str, output: Output) -> None:
        """Abandon a watch whose server sends something other than watch events."""
        output.step, output.restarted, output.warning = Step.BACK_OFF, "unreadable", warning
        if self._phase is _Phase.STREAM or self._unreadable_version == self.version:
            # Resuming would get the same answer again; a paged list does not.
            self._phase = _Phase.BEGIN
            self._force_paged_list = True
        self._unreadable_version = self.version

    def _handle_head(self, head: bytes, reason: str, output: Output) -> bool:
        """Process an event of which only the head is readable; that suffices for a deletion.

        Returns:
            Whether the line is an event of an object.
        """
        type_, identity = decoding.decode_event_head(head)
        if type_ not in {"ADDED", "MODIFIED", "DELETED"}:
            return False
        self.version = usable_version(identity.resource_version) or self.version
        name = _name(identity)
        if name is not None and type_ == "DELETED":
            self._remove(name, output)
            return True
        if name is not None:
            self._versions[name] = ""
            if self._phase is not _Phase.WATCH:
                self._seen.add(name)
        output.effects.append(Malformed(name, "", reason))
        return True

    def _handle_object(self, raw: msgspec.Raw, output: Output) -> str:
        """Process one object; return its resourceVersion, empty if unreadable."""
        obj: wire.WireObject | None = None
        # Do not keep the exception: its traceback refers to this frame, which makes a cycle.
        problem: tuple[str, str] | None = None
        metadata: wire.ObjectMeta | wire.Identity
        try:
            obj = decoding.decode_object(self._kind, raw)
            metadata, kind = obj.metadata, obj.kind
        except ParseError as error:
            metadata, problem = decoding.decode_identity(raw), (error.field, error.reason)
            kind = metadata.kind
        if kind is not None and kind != self._kind_name:
            obj, problem = None, self._wrong_kind(kind)
        version = usable_version(metadata.resource_version)
        name = _name(metadata)
        if name is None:
            problem = problem or ("metadata.name", "is missing")
            output.effects.append(Malformed(None, *problem))
            return version
        if self._phase is not _Phase.WATCH:
            self._seen.add(name)
        state: str | int = version
        if self._has_listed and self._phase is not _Phase.WATCH:
            state = decoding.fingerprint(raw)
        if version and self._versions.get(name) == state:
            return version
        self._versions[name] = state
        if obj is not None:
            output.effects.append(Changed(name, obj))
        elif problem is not None:
            output.effects.append(Malformed(name, *problem))
        return version

    def _handle_deleted(self, raw: msgspec.Raw, output: Output) -> None:
        identity = decoding.decode_identity(raw)
        self.version = usable_version(identity.resource_version) or self.version
        name = _name(identity)
        if identity.kind is not None and identity.kind != self._kind:
            output.effects.append(Malformed(name, *self._wrong_kind(identity.kind)))
        elif name is not None:
            self._remove(name, output)

    def _remove(self, name: NamespacedName, output: Output) -> None:
        self._seen.discard(name)
        self._versions.pop(name, None)
        self._removed.append(name)
        output.effects.append(Removed(name))

    def _wrong_kind(self, kind: str) -> tuple[str, str]:
        return "kind", f"{kind[:40]!r} is not {self._kind}"

    def _bookmark(self, raw: msgspec.Raw, output: Output) -> None:
        try:
            metadata = decoding.decode_metadata(raw)
        except ParseError:
            return
        self.version = usable_version(metadata.resource_version) or self.version
        if self._phase is not _Phase.STREAM:
            return
        if (metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true":
            if usable_version(metadata.resource_version):
                self._finish_list(output)
            else:
                self._abandon_watch("end of initial events without resourceVersion", output)
        else:
            # A server that supports sendInitialEvents sends no other bookmark before that one.
            output.step = self.response_ended(Cause.CLOSED).step
            output.warning = "no end of initial events; listing instead"

    def _finish_list(self, output: Output) -> None:
        """Finish a full list: remove the objects that it does not contain."""
        if self._is_unexpectedly_empty():
            self._saw_empty_list = self._force_paged_list = True
            self._phase = _Phase.BEGIN
            output.step = Step.CONFIRM_EMPTY
            return
        for name in [name for name in self._versions if name not in self._seen]:
            self._remove(name, output)
        self._seen.clear()
        self._paged = self._has_listed = True
        self._saw_empty_list = self._force_paged_list = False
        self._unreadable_version = None
        self._phase = _Phase.WATCH
        output.effects.append(Listed(len(self._versions)))

    def _is_unexpectedly_empty(self) -> bool:
        """Whether this list is the first empty one of a kind that should never be empty."""
        if self._seen or self._saw_empty_list or self._kind not in _EXPECTED_NONEMPTY:
            return False
        return bool(self._versions) or not self._has_listed

    def _drop_parameter(self, status: int, message: str) -> bool:
        """Drop a parameter that old servers do not support; return whether one was dropped."""
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

    def _handle_error(self, status: int, status_object: wire.Status) -> Output:
        """Process an error status or ERROR event that a simpler request would not avoid."""
        reason = status_object.message or status_object.reason or "no reason given"
        detail = f"HTTP {status}: {reason[:_MESSAGE_CHARACTERS]}"
        watching = self._phase is _Phase.WATCH
        if status == _GONE:
            if self._phase is _Phase.PAGES:
                # The token expired between two pages. A list in one piece needs no token.
                self._paged = False
            self._phase = _Phase.BEGIN
            return Output(step=Step.RETRY_NOW, warning=detail, restarted="gone" if watching else "")
        future = (status_object.message or "").startswith("Too large resource version")
        temporary = status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR or status in {401, 403}
        if self._phase is _Phase.STREAM or future or not temporary:
            # The server's data may be older than ours, if etcd was restored from a backup.
            # Only a new list is consistent with it.
            self._phase = _Phase.BEGIN
        restarted = "refused" if watching else ""
        return Output(step=Step.BACK_OFF, warning=detail, restarted=restarted)


def _name(metadata: wire.ObjectMeta | wire.Identity) -> NamespacedName | None:
    if not metadata.name:
        return None
    return NamespacedName(intern(metadata.namespace or ""), metadata.name)
