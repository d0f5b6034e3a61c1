"""Where API objects wait for a family's loop: the latest state of each, nothing else."""

from collections.abc import Callable, Mapping
from threading import Condition

import msgspec

from svcproxy.backends.base import ExternalChange
from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject, ObjectKey


class Batch(msgspec.Struct, frozen=True):
    """What came in since the last drain: objects by key, ``None`` for deleted ones.

    ``doubt`` is a change of the kernel by another program, certain or suspected.
    """

    objects: dict[ObjectKey, ApiObject | None]
    synced: frozenset[Kind]
    doubt: ExternalChange | None = None

    def then(self, later: "Batch") -> "Batch":
        """This batch followed by a ``later`` one, as one."""
        objects = {**self.objects, **later.objects}
        return Batch(objects, self.synced | later.synced, later.doubt or self.doubt)


class Inbox:
    """A mailbox that keeps only the latest state of each object; safe from any thread.

    Many updates of one object cost the reader one. Each ``put`` calls ``on_put`` in the caller's
    thread, so that health knows of waiting changes even if the reader hangs; each ``drain`` calls
    ``on_drain``. They never run at the same time, and must not call the inbox.
    """

    def __init__(self, on_put: Callable[[], None], on_drain: Callable[[], None]) -> None:
        self._on_put = on_put
        self._on_drain = on_drain
        self._condition = Condition()
        self._objects: dict[ObjectKey, ApiObject | None] = {}
        self._synced: set[Kind] = set()
        self._doubt: ExternalChange | None = None
        self._closed = False

    def put(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        """Store the present state of objects, ``None`` for one that is gone."""
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

    def doubt(self, change: ExternalChange) -> None:
        """Note that another program changed the kernel; of several changes, a certain one is kept."""
        with self._condition:
            if self._doubt is None or change.certain:
                self._doubt = change
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
        """Whether there is something to read, or the inbox is closed; asking costs no lock."""
        return self._closed or bool(self._doubt or self._objects or self._synced)

    def wait(self, seconds: float | None) -> None:
        """Wait until there is something to read, the inbox is closed, or time is up."""
        with self._condition:
            self._condition.wait_for(lambda: self.filled, seconds)

    def wait_for_lists(self) -> None:
        """Wait until another first list is complete, or the inbox is closed.

        Otherwise each object would wake a reader that has to wait for all lists anyway, and that
        would compete for the interpreter with the threads that deliver the objects.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._closed or bool(self._synced))

    def drain(self) -> Batch:
        """Take everything out."""
        with self._condition:
            self._on_drain()
            batch = Batch(self._objects, frozenset(self._synced), self._doubt)
            self._objects, self._synced, self._doubt = {}, set(), None
        return batch
