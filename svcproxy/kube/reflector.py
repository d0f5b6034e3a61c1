"""List and watch as a state machine without I/O: what to ask next, and what an answer means.

A ``Reflector`` follows the objects of one kind. Its driver sends what ``request`` asks for and
hands the answer to ``page``, ``lines``, ``refused`` or ``broken``; each gives an ``Output``: what
became of the objects, and how to go on. The rules are client-go's (``reflector.go``):

* The first state comes as a stream (WatchList, KEP-3157) that a bookmark completes, or, from
  servers without it, as a paged list; then a watch goes on from there.
* A lost watch resumes at the last resourceVersion seen; only 410 Gone, or an error the server
  does not call temporary, makes a new list.
* A new list removes the names it lacks, once it is complete, and repeats no object whose
  resourceVersion is known. Nothing else removes an object except its DELETED event: an API
  server that cannot be reached changes nothing.
"""

from enum import Enum
from sys import intern

import msgspec

from svcproxy.kube import wire
from svcproxy.kube.wire import ParseError, WireObject
from svcproxy.model.names import Kind, NamespacedName

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_GONE = 410
_TOO_MANY_REQUESTS = 429
_BAD_REQUEST = 400
_UNPROCESSABLE = 422
_SERVER_ERROR = 500


class Request(msgspec.Struct, frozen=True, gc=False):
    """What to send: a list page, or a watch when ``watch`` is set.

    ``initial`` marks a watch that begins with the whole state. ``query`` lacks only the time-out
    of watches, which is the driver's business.
    """

    watch: bool
    initial: bool
    query: tuple[tuple[str, str], ...]


class Step(Enum):
    """How the driver goes on: with this response, or after ending it, at once or later."""

    GO_ON = "read on, or send the next request"
    AGAIN = "end this response and send the next request at once"
    BACK_OFF = "end this response, wait, then send the next request"


class Cause(Enum):
    """Why a response ended without the reflector's will."""

    CLOSED = "closed"
    IDLE = "idle"
    CUT = "cut"


class Changed(msgspec.Struct, frozen=True, gc=False):
    """An object is new or different."""

    name: NamespacedName
    obj: WireObject


class Removed(msgspec.Struct, frozen=True, gc=False):
    """An object is gone."""

    name: NamespacedName


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """An object cannot be decoded; ``name`` is ``None`` where not even that can be read."""

    name: NamespacedName | None
    field: str
    reason: str


class Listed(msgspec.Struct, frozen=True, gc=False):
    """A full list is complete: ``count`` objects exist."""

    count: int


Effect = Changed | Removed | Malformed | Listed


class Output(msgspec.Struct, gc=False):
    """The meaning of an answer.

    ``trouble`` is one line for the log when something went wrong; ``restarted`` is the reason,
    from a small fixed set, for which the watch has to be started anew.
    """

    effects: list[Effect] = msgspec.field(default_factory=list)
    step: Step = Step.GO_ON
    trouble: str = ""
    restarted: str = ""


class Selectors(msgspec.Struct, frozen=True, gc=False):
    """Which objects to ask for; an ``optional`` field selector is one old servers may not know."""

    labels: str = ""
    fields: str = ""
    optional: bool = False


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
        self._selectors = selectors or Selectors()
        self._page_size = page_size
        self._paged = True
        self._watch_list = watch_list
        self._phase = _Phase.BEGIN
        self._version = ""
        self._token = ""
        self._known: dict[NamespacedName, str] = {}
        self._seen: set[NamespacedName] = set()

    def request(self) -> Request:
        """Say what to send next."""
        if self._phase is _Phase.BEGIN:
            self._phase = _Phase.STREAM if self._watch_list else _Phase.PAGES
            self._token = ""
            self._version = ""
        if self._phase is not _Phase.PAGES or not self._token:
            self._seen.clear()
        query = self._selection()
        if self._phase is _Phase.PAGES:
            if self._paged:
                query.append(("limit", str(self._page_size)))
            if self._token:
                query.append(("continue", self._token))
            return Request(watch=False, initial=False, query=tuple(query))
        query += [("watch", "true"), ("allowWatchBookmarks", "true")]
        initial = self._phase is _Phase.STREAM
        if initial:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        else:
            query.append(("resourceVersion", self._version))
        return Request(watch=True, initial=initial, query=tuple(query))

    def page(self, body: bytes) -> Output:
        """Take the body of a successful list request."""
        try:
            page = wire.decode_page(body)
        except ParseError as error:
            self._phase = _Phase.BEGIN
            return Output(step=Step.BACK_OFF, trouble=f"unreadable list: {error}")
        output = Output()
        for raw in page.items or ():
            self._take(raw, output)
        self._token = page.metadata.continue_token or ""
        if not self._token:
            self._version = page.metadata.resource_version or ""
            self._complete(output)
        return output

    def lines(self, lines: list[bytes]) -> Output:
        """Take complete lines of a watch stream; stops at the first that ends the stream."""
        output = Output()
        for line in lines:
            if not line.strip():
                continue
            try:
                event = wire.decode_event(line)
            except ParseError as error:
                output.step = Step.BACK_OFF
                output.trouble = f"unreadable watch event: {error}"
                output.restarted = "unreadable"
            else:
                self._event(event, output)
            if output.step is not Step.GO_ON:
                break
        return output

    def refused(self, status: int, body: bytes) -> Output:
        """Take an HTTP status other than 200, with its body."""
        account = wire.decode_status(body)
        message = account.message or ""
        if self._simplify(status, message):
            return Output(step=Step.AGAIN, trouble=f"HTTP {status}: {message}; asking plainly")
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
        """Begin anew and deliver every object again: for use after the consumer failed."""
        self._phase = _Phase.BEGIN
        self._known = dict.fromkeys(self._known, "")

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
                account = wire.decode_status(event.object)
                failed = self._failed(account.code or _SERVER_ERROR, account)
                output.step, output.trouble = failed.step, failed.trouble
                output.restarted = failed.restarted
            case _:
                output.step, output.restarted = Step.BACK_OFF, "unreadable"
                output.trouble = f"unknown watch event {event.type!r}"

    def _take(self, raw: msgspec.Raw, output: Output) -> str:
        """Note one object and give its resourceVersion, empty when that cannot be read."""
        obj, problem = None, None
        try:
            obj = wire.decode_object(self._kind, raw)
            metadata = obj.metadata
        except ParseError as error:
            metadata, problem = wire.decode_identity(raw), error
        version = metadata.resource_version or ""
        name = _name(metadata)
        if name is None:
            problem = problem or ParseError("metadata.name", "is missing")
            output.effects.append(Malformed(None, problem.field, problem.reason))
            return version
        if self._phase is not _Phase.WATCH:
            self._seen.add(name)
        if version and self._known.get(name) == version:
            return version
        self._known[name] = version
        if obj is not None:
            output.effects.append(Changed(name, obj))
        elif problem is not None:
            output.effects.append(Malformed(name, problem.field, problem.reason))
        return version

    def _drop(self, raw: msgspec.Raw, output: Output) -> None:
        metadata = wire.decode_identity(raw)
        self._version = metadata.resource_version or self._version
        name = _name(metadata)
        if name is not None:
            self._seen.discard(name)
            self._known.pop(name, None)
            output.effects.append(Removed(name))

    def _bookmark(self, raw: msgspec.Raw, output: Output) -> None:
        try:
            metadata = wire.decode_metadata(raw)
        except ParseError:
            return
        self._version = metadata.resource_version or self._version
        if self._phase is not _Phase.STREAM:
            return
        if (metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true":
            self._complete(output)
        else:
            # A server that knows sendInitialEvents sends no other bookmark before that one.
            output.step = self.broken(Cause.CLOSED).step
            output.trouble = "no end of initial events; listing instead"

    def _complete(self, output: Output) -> None:
        """End a full list: what it did not name is gone."""
        for name in [name for name in self._known if name not in self._seen]:
            del self._known[name]
            output.effects.append(Removed(name))
        self._seen.clear()
        self._paged = True
        self._phase = _Phase.WATCH
        output.effects.append(Listed(len(self._known)))

    def _simplify(self, status: int, message: str) -> bool:
        """Give up what an old server may not understand; tell whether there was something."""
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
        """Decide about an HTTP status or an ERROR event that is no matter of dialect."""
        detail = f"HTTP {status}: {account.message or account.reason or 'no reason given'}"
        watching = self._phase is _Phase.WATCH
        if status == _GONE:
            if self._phase is _Phase.PAGES:
                # The token expired between two pages: a single page, however long, has none.
                self._paged = False
            self._phase = _Phase.BEGIN
            return Output(step=Step.AGAIN, trouble=detail, restarted="gone" if watching else "")
        future = (account.message or "").startswith("Too large resource version")
        temporary = status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR or status in {401, 403}
        if self._phase is _Phase.STREAM or future or not temporary:
            # The server's data may be older than ours (an etcd restored from a backup): only a
            # new list gets both in step again.
            self._phase = _Phase.BEGIN
        restarted = "refused" if watching else ""
        return Output(step=Step.BACK_OFF, trouble=detail, restarted=restarted)


def _name(metadata: wire.ObjectMeta) -> NamespacedName | None:
    if not metadata.name:
        return None
    return NamespacedName(intern(metadata.namespace or ""), metadata.name)
