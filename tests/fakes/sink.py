"""A sink that records all calls, on which tests can wait for a condition."""

import threading
import time
from collections.abc import Callable, Mapping

from svcproxy.model.names import REQUIRED_KINDS, Kind, NamespacedName
from svcproxy.model.objects import ApiObject, Node, ObjectKey, Problem, Service


class RecordingSink:
    """Holds the current objects and the history of all calls."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, ApiObject] = {}
        self.updates: list[ApiObject] = []
        self.deletes: list[ObjectKey] = []
        self.syncs: list[Kind] = []
        self.problems: list[Problem] = []
        self.restarts: list[tuple[Kind, str]] = []
        self.fail_next_update: Exception | None = None
        self._changed = threading.Condition()

    def take(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        with self._changed:
            failure, self.fail_next_update = self.fail_next_update, None
            if failure is not None:
                raise failure
            for key, obj in objects.items():
                if obj is None:
                    self.deletes.append(key)
                    self.objects.pop(key, None)
                else:
                    assert key == key_of(obj)
                    self.updates.append(obj)
                    self.objects[key] = obj
            self._changed.notify_all()

    def synced(self, kind: Kind) -> None:
        with self._changed:
            self.syncs.append(kind)
            self._changed.notify_all()

    def rejected(self, problem: Problem) -> None:
        with self._changed:
            self.problems.append(problem)
            self._changed.notify_all()

    def restarted(self, kind: Kind, reason: str) -> None:
        with self._changed:
            self.restarts.append((kind, reason))
            self._changed.notify_all()

    def names(self, kind: Kind = Kind.SERVICE) -> set[str]:
        """Return the names of the current objects of a kind, without namespaces."""
        return {name.name for object_kind, name in self.objects if object_kind is kind}

    def service(self, name: str, namespace: str = "default") -> Service | None:
        found = self.objects.get((Kind.SERVICE, NamespacedName(namespace, name)))
        assert found is None or isinstance(found, Service)
        return found

    def wait(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait until the condition holds; it is checked after every call to the sink.

        Raises:
            AssertionError: it does not hold in time.
        """
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise AssertionError(f"not within {seconds} s; the sink holds {self!r}")

    def wait_synced(self, seconds: float = 5.0) -> None:
        self.wait(lambda: set(self.syncs) >= REQUIRED_KINDS, seconds)

    def __repr__(self) -> str:
        return (
            f"objects={sorted(map(str, self.objects))} syncs={self.syncs} "
            f"problems={list(map(str, self.problems))} restarts={self.restarts}"
        )


def key_of(obj: ApiObject) -> ObjectKey:
    """Return the kind and name of an object."""
    if isinstance(obj, Node):
        return Kind.NODE, NamespacedName("", obj.name)
    return Kind(type(obj).__name__), obj.name


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until a condition holds that does not depend on a sink.

    Raises:
        AssertionError: it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.005)
