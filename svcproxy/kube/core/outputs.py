"""The requests of a reflector, and what its answers mean, as values for the driver."""

from enum import Enum

import msgspec

from svcproxy.kube.core.wire import WireObject
from svcproxy.model.names import NamespacedName


class ApiRequest(msgspec.Struct, frozen=True, gc=False):
    """The next request to send: a list page, or a watch if ``watch`` is set.

    Attributes:
        watch: whether the request is a watch.
        initial: whether the watch begins with the whole state (``sendInitialEvents``).
        query: the query parameters, without ``timeoutSeconds``, which the driver adds to watches.
        body_limit: the maximum size of the response to a list request, in decompressed bytes.
    """

    watch: bool
    initial: bool
    query: tuple[tuple[str, str], ...]
    body_limit: int = 0


class Step(Enum):
    """What the driver does next."""

    CONTINUE = "keep reading, or send the next request"
    RETRY_NOW = "end this response and send the next request immediately"
    BACK_OFF = "end this response, wait, then send the next request"
    CONFIRM_EMPTY = "the list is empty: wait a moment, then send the next request"


class Cause(Enum):
    """Why a response ended, unless the reflector ended it."""

    CLOSED = "closed"
    IDLE = "idle"
    CUT = "cut"


class Changed(msgspec.Struct, frozen=True, gc=False):
    """An object was added or modified."""

    name: NamespacedName
    obj: WireObject


class Removed(msgspec.Struct, frozen=True, gc=False):
    """An object was deleted."""

    name: NamespacedName


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """An object cannot be decoded; ``name`` is ``None`` if its name is unreadable, too."""

    name: NamespacedName | None
    field: str
    reason: str


class Listed(msgspec.Struct, frozen=True, gc=False):
    """A full list is complete; ``count`` objects exist."""

    count: int


Effect = Changed | Removed | Malformed | Listed


class Output(msgspec.Struct, gc=False):
    """The effects of an answer, and the driver's next step.

    Attributes:
        effects: what happened to objects, in order.
        step: what the driver does next.
        warning: one line for the log if something went wrong; otherwise empty.
        restarted: the reason why the watch must be restarted, from a small fixed set; otherwise
            empty.
    """

    effects: list[Effect] = msgspec.field(default_factory=list)
    step: Step = Step.CONTINUE
    warning: str = ""
    restarted: str = ""


class Selectors(msgspec.Struct, frozen=True, gc=False):
    """The selectors of requests. Old servers may not support an ``optional`` field selector."""

    labels: str = ""
    fields: str = ""
    optional: bool = False

    def query(self) -> list[tuple[str, str]]:
        """Return the selectors as query parameters."""
        parameters = (("labelSelector", self.labels), ("fieldSelector", self.fields))
        return [(name, value) for name, value in parameters if value]
