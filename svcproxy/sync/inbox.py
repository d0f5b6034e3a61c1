"""The inbox of a family's loop: the latest state of each API object, until the loop takes it."""

import time
from collections.abc import Callable, Mapping
from threading import Condition

import msgspec

from svcproxy.backends.base import ExternalChange
from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject, ObjectKey


class Batch(msgspec.Struct, frozen=True):
    """The content of the inbox since the last ``drain``.

    Attributes:
        objects: the latest state of each changed object; ``None`` for a deleted one.
        synced: the kinds whose first list is complete.
        external_change: a change of the kernel by another program that calls for a resync.
        changed_at: when the first such change was reported, in seconds of the inbox's clock.
    """

    objects: dict[ObjectKey, ApiObject | None]
    synced: frozenset[Kind]
    external_change: ExternalChange | None = None
    changed_at: float = 0.0

    def then(self, later: "Batch") -> "Batch":
        """Return this batch and a ``later`` one as one."""
        objects = {**self.objects, **later.objects}
        change = later.external_change or self.external_change
        changed_at = self.changed_at if self.external_change else later.changed_at
        return Batch(objects, self.synced | later.synced, change, changed_at)


class Inbox:
    """A mailbox that keeps only the latest state of each object; safe from any thread.

    Many updates of an object cost the reader as much as one. The callbacks never run at the same
    time, and must not call the inbox.

    Args:
        on_put: called by each ``put`` in the caller's thread, so that health checks know of waiting
            changes even if the reader hangs.
        on_drain: called by each ``drain``.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        on_put: Callable[[], None],
        on_drain: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_put = on_put
        self._on_drain = on_drain
        self._condition = Condition()
        self._objects: dict[ObjectKey, ApiObject | None] = {}
        self._synced: set[Kind] = set()
        self._external_change: ExternalChange | None = None
        self._changed_at = 0.0
        self._clock = clock
        self._closed = False

    def put(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        """Store the current state of objects, ``None`` for a deleted one."""
        with self._condition:
            self._on_put()
            if not self._objects:
                self._condition.notify()
            self._objects.update(objects)

    def synced(self, kind: Kind) -> None:
        """Note that the first list of ``kind`` is complete."""
        with self._condition:
            self._synced.add(kind)
            self._condition.notify()

    def request_resync(self, change: ExternalChange) -> None:
        """Request a resync because of a change by another program.

        If there are several changes, a certain one is kept.
        """
        with self._condition:
            if self._external_change is None:
                self._changed_at = self._clock()
            if self._external_change is None or change.certain:
                self._external_change = change
                self._condition.notify()

    def close(self) -> None:
        """Wake the reader for the last time."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the reader should end."""
        return self._closed

    @property
    def filled(self) -> bool:
        """Whether there is something to read, or the inbox is closed; takes no lock."""
        return self._closed or bool(self._external_change or self._objects or self._synced)

    @property
    def waiting(self) -> int:
        """The number of objects to read; takes no lock."""
        return len(self._objects)

    def wait(self, seconds: float | None) -> None:
        """Wait until there is something to read or the inbox is closed, at most ``seconds``."""
        with self._condition:
            self._condition.wait_for(lambda: self.filled, seconds)

    def wait_for_lists(self) -> None:
        """Wait until another first list is complete or the inbox is closed.

        A reader that has to wait for all lists must not be woken by each object: it would compete
        for the interpreter with the threads that deliver the objects.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._closed or bool(self._synced))

    def drain(self) -> Batch:
        """Take everything out."""
        with self._condition:
            self._on_drain()
            batch = Batch(
                self._objects, frozenset(self._synced), self._external_change, self._changed_at
            )
            self._objects, self._synced, self._external_change = {}, set(), None
        return batch
