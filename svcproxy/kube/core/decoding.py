"""Decodes answers of the API server one object at a time, so that no object affects another.

msgspec decodes almost all objects. A document that it refuses as a whole (deep nesting, invalid
UTF-8, lone surrogates) is split into objects and repaired by ``rawjson``, then decoded again: Go
clients accept such objects and the API server stores them. So a field that svcproxy does not read
cannot make an object unusable, and an object that cannot be decoded affects no other object.
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
    plain_message,
)
from svcproxy.model.names import Kind


class _MetadataOnly(Wire):
    """An object of which only ``metadata`` is decoded."""

    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)


class _IdentityMeta(Wire):
    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None


class _IdentityOnly(Wire):
    kind: str | None = None
    metadata: _IdentityMeta = msgspec.field(default_factory=_IdentityMeta)


class _UidMeta(Wire):
    uid: str = ""


class _UidOnly(Wire):
    metadata: _UidMeta = msgspec.field(default_factory=_UidMeta)


_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(type_) for kind, type_ in TYPES.items()
}
_METADATA_DECODER = msgspec.json.Decoder(_MetadataOnly)
_IDENTITY_DECODER = msgspec.json.Decoder(_IdentityOnly)
_UID_DECODER = msgspec.json.Decoder(_UidOnly)
_PAGE_DECODER = msgspec.json.Decoder(ListPage)
_LIST_META_DECODER = msgspec.json.Decoder(ListMeta)
_EVENT_DECODER = msgspec.json.Decoder(WatchEvent)
_STATUS_DECODER = msgspec.json.Decoder(Status)
_STRING_DECODER = msgspec.json.Decoder(str)
# The offset at which the metadata begins at most: only kind and apiVersion may precede it
_METADATA_OFFSET_BYTES = 128
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_object(kind: Kind, raw: bytes | msgspec.Raw) -> WireObject:
    """Decode one object of a known kind from JSON.

    Raises:
        ParseError: the JSON is malformed, or a field that svcproxy reads has the wrong type.
    """
    try:
        obj: WireObject = _DECODERS[kind].decode(raw)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _DECODE_ERRORS:
        obj = _decode_repaired(_DECODERS[kind], raw)
    return obj


def decode_identity(raw: bytes | msgspec.Raw) -> Identity:
    """Read the kind, name, namespace and resourceVersion of an object; never raises."""
    try:
        obj = _IDENTITY_DECODER.decode(raw)
    except _DECODE_ERRORS:
        return _partial_identity(bytes(raw))
    metadata = obj.metadata
    return Identity(obj.kind, metadata.name, metadata.namespace, metadata.resource_version)


def decode_event_head(line: bytes) -> tuple[str, Identity]:
    """Read the type and the object's identity from a malformed or truncated watch event.

    Go's encoder writes the type, the object's kind and its name before all fields that can be
    long. Fields that cannot be read are empty.
    """
    parts = rawjson.members(line, partial=True)
    return _string(parts.get(b"type")) or "", _partial_identity(parts.get(b"object", b""))


def fingerprint(raw: msgspec.Raw) -> int:
    """Return a hash of the bytes of an object; takes 0.5 µs per kilobyte.

    ``kind`` and ``apiVersion`` are left out: watch events have them, items of a list do not.
    """
    data = bytes(raw)
    begin = data.find(b'"metadata"', 0, _METADATA_OFFSET_BYTES)
    return hash(data[begin:] if begin > 0 else data)


def decode_metadata(raw: bytes | msgspec.Raw) -> ObjectMeta:
    """Decode only the metadata of an object, for bookmarks.

    Raises:
        ParseError: the metadata is malformed.
    """
    try:
        return _METADATA_DECODER.decode(raw).metadata
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _DECODE_ERRORS:
        envelope: _MetadataOnly = _decode_repaired(_METADATA_DECODER, raw)
        return envelope.metadata


def usable_version(version: str | None) -> str:
    """Return a resourceVersion; empty if it is absent or too long to be sent."""
    return version if version and len(version) <= limits.VERSION_CHARACTERS else ""


def decode_uid(raw: bytes | msgspec.Raw) -> str:
    """Read the UID of an object; empty if it cannot be read."""
    try:
        decoded: _UidOnly = _decode_repaired(_UID_DECODER, raw)
    except ParseError:
        return ""
    return decoded.metadata.uid


def decode_page(kind: Kind, body: bytes) -> ListPage:
    """Decode a page of a list without decoding its items.

    Proxies and servers in maintenance may answer with status 200 and any JSON, so all fields of a
    list are required.

    Raises:
        ParseError: the body is not a list of this kind.
    """
    try:
        page = _PAGE_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _DECODE_ERRORS as error:
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
    """Decode a line of a watch without decoding its object.

    Raises:
        ParseError: the line is not a watch event.
    """
    try:
        return _EVENT_DECODER.decode(line)
    except msgspec.ValidationError as error:
        raise parse_error(error) from error
    except _DECODE_ERRORS as error:
        return _split_event(line, error)


def decode_status(body: bytes | msgspec.Raw) -> Status:
    """Decode a Status; empty for any other body, such as the HTML page of a proxy."""
    try:
        return _STATUS_DECODER.decode(body)
    except _DECODE_ERRORS:
        pass
    try:
        status: Status = _decode_repaired(_STATUS_DECODER, body)
    except ParseError:
        return Status()
    return status


def _decode_repaired(decoder: msgspec.json.Decoder[Any], raw: bytes | msgspec.Raw) -> Any:
    """Decode a document that msgspec refused, after repairing it and pruning deep nesting."""
    try:
        return decoder.decode(rawjson.decodable(bytes(raw)))
    except msgspec.MsgspecError as error:
        raise parse_error(error) from error
    except RecursionError as error:
        raise ParseError("", "cannot be decoded: the call stack is nearly full") from error


def _split_page(body: bytes, error: Exception) -> ListPage:
    """Split a page by its brackets after msgspec failed with ``error``."""
    try:
        parts = rawjson.members(body)
        items = parts.get(b"items")
        raws: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
        if items is not None:
            raws = None if items == b"null" else list(map(msgspec.Raw, rawjson.elements(items)))
    except rawjson.BrokenJsonError as broken:
        raise ParseError("", f"{plain_message(str(error))}; {broken}") from broken
    metadata: ListMeta = _decode_repaired(_LIST_META_DECODER, parts.get(b"metadata", b"{}"))
    kind, version = _string(parts.get(b"kind")), _string(parts.get(b"apiVersion"))
    return ListPage(kind, version, metadata, raws)


def _split_event(line: bytes, error: Exception) -> WatchEvent:
    """Split a watch event by its brackets after msgspec failed with ``error``."""
    try:
        parts = rawjson.members(line)
    except rawjson.BrokenJsonError as broken:
        raise ParseError("", f"{plain_message(str(error))}; {broken}") from broken
    return WatchEvent(_string(parts.get(b"type")) or "", msgspec.Raw(parts.get(b"object", b"null")))


def _partial_identity(raw: bytes) -> Identity:
    """Read the identity of an object whose text is malformed elsewhere, or truncated."""
    parts = rawjson.members(raw, partial=True)
    metadata = rawjson.members(parts.get(b"metadata", b""), partial=True)
    return Identity(
        _string(parts.get(b"kind")),
        _string(metadata.get(b"name")),
        _string(metadata.get(b"namespace")),
        _string(metadata.get(b"resourceVersion")),
    )


def _string(value: bytes | None) -> str | None:
    """Decode a string; ``None`` for any other value."""
    if value is None:
        return None
    try:
        return _STRING_DECODER.decode(rawjson.decodable(value))
    except _DECODE_ERRORS:
        return None
