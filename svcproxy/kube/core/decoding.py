"""Decodes answers of the API server one object at a time, so that no object affects another.

msgspec decodes nearly everything. Text that it cannot decode at all (deep nesting, invalid UTF-8,
lone surrogates) is split into objects and repaired by ``rawjson``, and then decoded again: Go
clients accept such objects, and the API server stores them. So a value that svcproxy does not read
cannot make its object unusable, and an object that cannot be decoded affects no other object.
"""

from typing import Any

import msgspec

from svcproxy import limits
from svcproxy.kube.core import rawjson
from svcproxy.kube.core.wire import (
    API_VERSIONS,
    TYPES,
    Identity,
    ListMeta,
    ListPage,
    ObjectMeta,
    ParseError,
    Status,
    WatchEvent,
    Wire,
    WireObject,
    parse_error,
    sentence,
)
from svcproxy.model.names import Kind


class _Envelope(Wire):
    """An object of which only the metadata is read."""

    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)


class _Label(Wire):
    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None


class _Labelled(Wire):
    kind: str | None = None
    metadata: _Label = msgspec.field(default_factory=_Label)


class _Uid(Wire):
    uid: str = ""


class _Unique(Wire):
    metadata: _Uid = msgspec.field(default_factory=_Uid)


_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(type_) for kind, type_ in TYPES.items()
}
_ENVELOPES = msgspec.json.Decoder(_Envelope)
_LABELS = msgspec.json.Decoder(_Labelled)
_UIDS = msgspec.json.Decoder(_Unique)
_PAGES = msgspec.json.Decoder(ListPage)
_LIST_METAS = msgspec.json.Decoder(ListMeta)
_EVENTS = msgspec.json.Decoder(WatchEvent)
_STATUSES = msgspec.json.Decoder(Status)
_TEXTS = msgspec.json.Decoder(str)
# Where the metadata begins at the latest: only kind and apiVersion may precede it
_TYPE_BYTES = 128
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_object(kind: Kind, raw: bytes | msgspec.Raw) -> WireObject:
    """Decode one object of a known kind from JSON.

    Raises:
        ParseError: the JSON is broken or a field we read has the wrong type.
    """
    try:
        obj: WireObject = _DECODERS[kind].decode(raw)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _UNDECODABLE:
        obj = _decode_repaired(_DECODERS[kind], raw)
    return obj


def decode_identity(raw: bytes | msgspec.Raw) -> Identity:
    """Read the kind, name, namespace and resourceVersion of an object; never fails."""
    try:
        obj = _LABELS.decode(raw)
    except _UNDECODABLE:
        return _salvage(bytes(raw))
    label = obj.metadata
    return Identity(obj.kind, label.name, label.namespace, label.resource_version)


def decode_head(line: bytes) -> tuple[str, Identity]:
    """Read the type and the object's identity of a watch event that is broken or was cut off.

    Go's encoder writes the type, the object's kind and its name before everything that can be
    long. Parts that cannot be read are empty.
    """
    parts = rawjson.members(line, partial=True)
    return _text(parts.get(b"type")) or "", _salvage(parts.get(b"object", b""))


def fingerprint(raw: msgspec.Raw) -> int:
    """Hash the bytes of an object; takes 0.5 µs per kilobyte.

    ``kind`` and ``apiVersion`` do not count: events have them, the items of a list do not.
    """
    data = bytes(raw)
    begin = data.find(b'"metadata"', 0, _TYPE_BYTES)
    return hash(data[begin:] if begin > 0 else data)


def decode_metadata(raw: bytes | msgspec.Raw) -> ObjectMeta:
    """Read an object's metadata and nothing else, for bookmarks.

    Raises:
        ParseError: the metadata is malformed.
    """
    try:
        return _ENVELOPES.decode(raw).metadata
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _UNDECODABLE:
        envelope: _Envelope = _decode_repaired(_ENVELOPES, raw)
        return envelope.metadata


def usable_version(version: str | None) -> str:
    """Give a resourceVersion, or an empty text for one that is absent or too long to ask for."""
    return version if version and len(version) <= limits.VERSION_CHARACTERS else ""


def decode_uid(raw: bytes | msgspec.Raw) -> str:
    """Read the UID of an object; empty where it cannot be read."""
    try:
        unique: _Unique = _decode_repaired(_UIDS, raw)
    except ParseError:
        return ""
    return unique.metadata.uid


def decode_page(kind: Kind, body: bytes) -> ListPage:
    """Decode a page of a list of a kind without looking into its items.

    Proxies and servers in maintenance may answer with status 200 and any JSON, so all fields of a
    list are required.

    Raises:
        ParseError: the body is no list of this kind.
    """
    try:
        page = _PAGES.decode(body)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _UNDECODABLE as error:
        page = _split_page(body, error)
    expected = ((page.kind, f"{kind}List"), (page.api_version, API_VERSIONS[kind]))
    for field, (found, wanted) in zip(("kind", "apiVersion"), expected, strict=True):
        if found != wanted:
            raise ParseError(field, f"{(found or '')[:40]!r} is not {wanted!r}")
    if not usable_version(page.metadata.resource_version):
        reason = "is too long" if page.metadata.resource_version else "is missing"
        raise ParseError("metadata.resourceVersion", reason)
    if len(page.metadata.continue_token or "") > limits.CONTINUE_CHARACTERS:
        raise ParseError("metadata.continue", "is too long")
    if page.items is msgspec.UNSET:
        raise ParseError("items", "is missing")
    return page


def decode_event(line: bytes) -> WatchEvent:
    """Decode a line of a watch stream without looking into its object.

    Raises:
        ParseError: the line is no event.
    """
    try:
        return _EVENTS.decode(line)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _UNDECODABLE as error:
        return _split_event(line, error)


def decode_status(body: bytes | msgspec.Raw) -> Status:
    """Read a Status; any other body, such as a proxy's HTML page, gives an empty one."""
    try:
        return _STATUSES.decode(body)
    except _UNDECODABLE:
        pass
    try:
        status: Status = _decode_repaired(_STATUSES, body)
    except ParseError:
        return Status()
    return status


def _decode_repaired(decoder: msgspec.json.Decoder[Any], raw: bytes | msgspec.Raw) -> Any:
    """Decode text that msgspec refused, after repairing it and dropping what is too deep."""
    try:
        return decoder.decode(rawjson.decodable(bytes(raw)))
    except msgspec.MsgspecError as error:
        raise parse_error(error) from error
    except RecursionError as error:
        raise ParseError("", "cannot be decoded: the call stack is nearly full") from error


def _split_page(body: bytes, error: Exception) -> ListPage:
    """Split a page by its brackets, after msgspec has failed with ``error``."""
    try:
        parts = rawjson.members(body)
        items = parts.get(b"items")
        raws: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
        if items is not None:
            raws = None if items == b"null" else list(map(msgspec.Raw, rawjson.elements(items)))
    except rawjson.BrokenJsonError as broken:
        raise ParseError("", f"{sentence(str(error))}; {broken}") from broken
    metadata: ListMeta = _decode_repaired(_LIST_METAS, parts.get(b"metadata", b"{}"))
    kind, version = _text(parts.get(b"kind")), _text(parts.get(b"apiVersion"))
    return ListPage(kind, version, metadata, raws)


def _split_event(line: bytes, error: Exception) -> WatchEvent:
    """Split an event by its brackets, after msgspec has failed with ``error``."""
    try:
        parts = rawjson.members(line)
    except rawjson.BrokenJsonError as broken:
        raise ParseError("", f"{sentence(str(error))}; {broken}") from broken
    return WatchEvent(_text(parts.get(b"type")) or "", msgspec.Raw(parts.get(b"object", b"null")))


def _salvage(raw: bytes) -> Identity:
    """Read the identity of an object from text that is broken elsewhere, or ends too early."""
    parts = rawjson.members(raw, partial=True)
    metadata = rawjson.members(parts.get(b"metadata", b""), partial=True)
    return Identity(
        _text(parts.get(b"kind")),
        _text(metadata.get(b"name")),
        _text(metadata.get(b"namespace")),
        _text(metadata.get(b"resourceVersion")),
    )


def _text(value: bytes | None) -> str | None:
    """Decode a string; ``None`` for any other value."""
    if value is None:
        return None
    try:
        return _TEXTS.decode(rawjson.decodable(value))
    except _UNDECODABLE:
        return None
