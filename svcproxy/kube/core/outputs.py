"""The requests and outputs of a reflector, as values for its driver.

Pure.
"""

from enum import Enum

import msgspec

from svcproxy.kube.core.wire import WireObject
from svcproxy.model.names import NamespacedName


class Request(msgspec.Struct, frozen=True, gc=False):
    """What to send: a list page, or a watch when ``watch`` is set.

    ``initial`` marks a watch that begins with the whole state. ``query`` lacks only the time-out
    of watches, which the driver adds. ``body_limit`` is the number of bytes that the
    answer to a list request may have, decompressed.
    """

    watch: bool
    initial: bool
    query: tuple[tuple[str, str], ...]
    body_limit: int = 0


class Step(Enum):
    """What the driver does next."""

    GO_ON = "read on, or send the next request"
    AGAIN = "end this response and send the next request at once"
    BACK_OFF = "end this response, wait, then send the next request"
    SECOND_LOOK = "the list is empty: wait a moment, then send the next request"


class Cause(Enum):
    """Why a response ended, if the reflector did not end it."""

    CLOSED = "closed"
    IDLE = "idle"
    CUT = "cut"


class Changed(msgspec.Struct, frozen=True, gc=False):
    """An object is new or different."""

    name: NamespacedName
    obj: WireObject


class Removed(msgspec.Struct, frozen=True, gc=False):
    """An object does not exist any more."""

    name: NamespacedName


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """An object cannot be decoded; ``name`` is ``None`` if even the name cannot be read."""

    name: NamespacedName | None
    field: str
    reason: str


class Listed(msgspec.Struct, frozen=True, gc=False):
    """A full list is complete: ``count`` objects exist."""

    count: int


Effect = Changed | Removed | Malformed | Listed


class Output(msgspec.Struct, gc=False):
    """What an answer means, and what the driver does next.

    ``trouble`` is one line for the log if something went wrong. ``restarted`` is the reason, from a
    small fixed set, why the watch has to be restarted.
    """

    effects: list[Effect] = msgspec.field(default_factory=list)
    step: Step = Step.GO_ON
    trouble: str = ""
    restarted: str = ""


class Selectors(msgspec.Struct, frozen=True, gc=False):
    """Which objects to ask for; old servers may not know an ``optional`` field selector."""

    labels: str = ""
    fields: str = ""
    optional: bool = False
