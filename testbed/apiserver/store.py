"""The fake API server's storage: objects, resourceVersions, and events for resuming watches."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, str]
Encode = Callable[[dict[str, Any]], bytes]
_SNAPSHOTS = 12


@dataclass(frozen=True)
class Resource:
    """The API resource of one kind."""

    kind: str
    api_version: str
    path: str


RESOURCES = {
    "Service": Resource("Service", "v1", "/api/v1/services"),
    "EndpointSlice": Resource(
        "EndpointSlice", "discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/endpointslices"
    ),
    "Node": Resource("Node", "v1", "/api/v1/nodes"),
    "ServiceCIDR": Resource(
        "ServiceCIDR", "networking.k8s.io/v1", "/apis/networking.k8s.io/v1/servicecidrs"
    ),
}


@dataclass(frozen=True)
class Stored:
    """An object with its JSON, encoded once: lists are joined from these bytes."""

    obj: dict[str, Any]
    version: int
    body: bytes
    encode: Encode

    @property
    def key(self) -> Key:
        """Namespace and name."""
        metadata = self.obj.get("metadata") or {}
        return (metadata.get("namespace") or "", metadata.get("name") or "")


@dataclass(frozen=True)
class Event:
    """A change: the object before and after it (``None`` if it did not or does not exist)."""

    version: int
    before: Stored | None
    after: Stored | None


@dataclass
class Table:
    """The objects and events of one kind; ``changed`` is notified on every event."""

    resource: Resource
    objects: dict[Key, Stored] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    compacted: int = 0
    trimmed: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


@dataclass(frozen=True)
class Selector:
    """Label and field selectors of the forms ``!label``, ``field=value`` and ``field!=value``."""

    absent_labels: tuple[str, ...] = ()
    fields: tuple[tuple[str, str, bool], ...] = ()

    @classmethod
    def parse(cls, labels: str, fields: str) -> "Selector":
        """Parse ``!label`` terms and ``path=value`` or ``path!=value`` terms."""
        absent = tuple(term.removeprefix("!") for term in labels.split(",") if term)
        terms = []
        for term in filter(None, fields.split(",")):
            name, _, value = term.partition("=")
            terms.append((name.removesuffix("!"), value, not name.endswith("!")))
        return cls(absent, tuple(terms))

    def matches(self, stored: Stored | None) -> bool:
        """Return whether an object is selected; ``None`` is not."""
        if stored is None:
            return False
        labels = (stored.obj.get("metadata") or {}).get("labels") or {}
        if any(label in labels for label in self.absent_labels):
            return False
        return all(
            (_lookup(stored.obj, name) == value) is equal for name, value, equal in self.fields
        )


def _encode(obj: dict[str, Any]) -> bytes:
    return json.dumps(obj).encode()


class Store:
    """All tables, with one counter of resourceVersions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 1000
        self._snapshots: dict[tuple[str, int], list[Stored]] = {}
        self.tables = {kind: Table(resource) for kind, resource in RESOURCES.items()}

    @property
    def version(self) -> int:
        """The newest resource version."""
        return self._version

    def put(self, obj: dict[str, Any], encode: Encode = _encode) -> int:
        """Create or replace an object; return its resource version.

        Args:
            obj: the object.
            encode: returns the bytes that clients receive; malformed ones for hostile objects.
        """
        table = self.tables[obj["kind"]]
        with self._lock:
            self._version += 1
            version = self._version
            metadata = {**(obj.get("metadata") or {}), "resourceVersion": str(version)}
            stored_obj = {**obj, "metadata": metadata}
            stored = Stored(stored_obj, version, encode(stored_obj), encode)
            with table.changed:
                before = table.objects.get(stored.key)
                table.objects[stored.key] = stored
                table.events.append(Event(version, before, stored))
                table.changed.notify_all()
        return version

    def delete(self, kind: str, namespace: str, name: str) -> int:
        """Delete an object; return the resource version of the deletion."""
        table = self.tables[kind]
        with self._lock:
            self._version += 1
            version = self._version
            with table.changed:
                before = table.objects.pop((namespace, name))
                table.events.append(Event(version, _at(before, version), None))
                table.changed.notify_all()
        return version

    def compact(self) -> None:
        """Discard all events: older watches and continue tokens are answered with 410."""
        with self._lock:
            for table in self.tables.values():
                with table.changed:
                    table.events.clear()
                    table.compacted = self._version
                    table.changed.notify_all()

    def trim(self, keep: int) -> None:
        """Discard all but the last ``keep`` events of each kind, like etcd's compaction.

        A watch that has not received all discarded events ends with a 410.
        """
        for table in self.tables.values():
            with table.changed:
                if len(table.events) > keep:
                    last = table.events[len(table.events) - keep - 1].version
                    table.trimmed = table.compacted = max(table.compacted, last)
                    del table.events[: len(table.events) - keep]
                    table.changed.notify_all()

    def rewrite(self, obj: dict[str, Any]) -> None:
        """Change an object without an event or a new resource version, as a restored etcd may."""
        with self._lock:
            table = self.tables[obj["kind"]]
            with table.changed:
                new = Stored(obj, 0, b"", _encode)
                table.objects[new.key] = _at(new, table.objects[new.key].version)

    def advance(self) -> None:
        """Increase the resource version, so that everything read so far is outdated."""
        with self._lock:
            self._version += 1
        self.compact()

    def wake(self) -> None:
        """Wake all watches to check whether they should end."""
        for table in self.tables.values():
            with table.changed:
                table.changed.notify_all()

    def snapshot(self, kind: str, selector: Selector, version: int = 0) -> tuple[int, list[Stored]]:
        """Return a version and the matching objects, ordered by key as in etcd.

        With the ``version`` of an earlier snapshot, that snapshot is returned again: all pages of
        a list show the same state.
        """
        with self._lock, self.tables[kind].changed:
            if version and (kind, version) in self._snapshots:
                return version, self._snapshots[kind, version]
            found = [s for _, s in sorted(self.tables[kind].objects.items()) if selector.matches(s)]
            self._snapshots[kind, self._version] = found
            while len(self._snapshots) > _SNAPSHOTS:
                del self._snapshots[next(iter(self._snapshots))]
            return self._version, found


def translate(event: Event, selector: Selector) -> tuple[str, Stored] | None:
    """Return a change as a watch with this selector sees it; no longer matching is a deletion."""
    was, matches = selector.matches(event.before), selector.matches(event.after)
    if matches and event.after is not None:
        return ("MODIFIED" if was else "ADDED"), event.after
    if was and event.before is not None:
        # As in the API server: the object before the change, with the version of the change.
        return "DELETED", event.before if event.after is None else _at(event.before, event.version)
    return None


def _at(stored: Stored, version: int) -> Stored:
    """The same object with another resource version."""
    metadata = {**stored.obj["metadata"], "resourceVersion": str(version)}
    obj = {**stored.obj, "metadata": metadata}
    return Stored(obj, version, stored.encode(obj), stored.encode)


def _lookup(obj: dict[str, Any], path: str) -> object:
    value: Any = obj
    for part in path.split("."):
        value = (value or {}).get(part)
    return value if value is not None else ""
