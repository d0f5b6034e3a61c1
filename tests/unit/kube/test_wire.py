import json

import msgspec
import pytest

from svcproxy.kube.core import decoding, wire
from svcproxy.kube.core.wire import ParseError
from svcproxy.model.names import Kind


def test_a_wrong_type_is_reported_with_its_path() -> None:
    raw = json.dumps({"spec": {"ports": [{"port": 80}, {"port": "http"}]}}).encode()
    with pytest.raises(ParseError) as caught:
        decoding.decode_object(Kind.SERVICE, raw)
    assert caught.value.field == "spec.ports[1].port"
    assert caught.value.reason == "expected int, got str"
    assert str(caught.value) == "spec.ports[1].port: expected int, got str"


def test_manifests_get_the_same_error_messages_as_json() -> None:
    document = {"spec": {"ports": [{"port": "http"}]}}
    with pytest.raises(ParseError) as caught:
        wire.convert_object(Kind.SERVICE, document)
    assert caught.value.field == "spec.ports[0].port"
    assert caught.value.reason == "expected int, got str"


@pytest.mark.parametrize("raw", [b"[]", b"7", b'"x"', b"null", b"{", b"", b"\xff"])
def test_a_value_that_is_not_an_object_is_a_parse_error(raw: bytes) -> None:
    with pytest.raises(ParseError):
        decoding.decode_object(Kind.ENDPOINT_SLICE, raw)
    assert decoding.decode_identity(raw).name is None


def test_null_is_accepted_where_go_accepts_it() -> None:
    raw = b"""{"metadata": {"name": "a", "labels": null, "annotations": null}, "ports": null,
        "endpoints": [{"addresses": null, "conditions": null, "nodeName": null, "hints": null}]}"""
    obj = decoding.decode_object(Kind.ENDPOINT_SLICE, raw)
    assert isinstance(obj, wire.EndpointSlice)
    assert obj.ports is None
    raw = b'{"metadata": {"name": "a"}, "spec": null, "status": {"loadBalancer": null}}'
    assert isinstance(decoding.decode_object(Kind.SERVICE, raw), wire.Service)
    assert isinstance(decoding.decode_object(Kind.NODE, raw), wire.Node)


def test_the_identity_of_a_malformed_object_is_still_readable() -> None:
    raw = b"""{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "7", "labels": 3}}"""
    with pytest.raises(ParseError, match=r"metadata\.labels"):
        decoding.decode_object(Kind.SERVICE, raw)
    metadata = decoding.decode_identity(raw)
    assert (metadata.name, metadata.namespace, metadata.resource_version) == ("a", "b", "7")


def test_one_bad_item_does_not_fail_a_page() -> None:
    head = b'{"kind": "ServiceList", "apiVersion": "v1", "metadata": '
    page = decoding.decode_page(
        Kind.SERVICE,
        head + b'{"resourceVersion": "9", "continue": "c"}, "items": [{"metadata": 1}, 2]}',
    )
    assert (page.metadata.resource_version, page.metadata.continue_token) == ("9", "c")
    assert [bytes(raw) for raw in page.items or ()] == [b'{"metadata": 1}', b"2"]
    empty = head + b'{"resourceVersion": "9"}, "items": null}'
    assert decoding.decode_page(Kind.SERVICE, empty).items is None


def test_events_and_statuses() -> None:
    event = decoding.decode_event(b'{"type": "ERROR", "object": {"code": 410, "reason": "Gone"}}')
    assert event.type == "ERROR"
    assert decoding.decode_status(event.object).code == 410
    assert decoding.decode_status(b"<html>") == wire.Status()
    assert decoding.decode_status(b"\xff") == wire.Status()
    assert decoding.decode_event(b"{}").object == msgspec.Raw(b"null")
    with pytest.raises(ParseError):
        decoding.decode_event(b"<html>")
    with pytest.raises(ParseError):
        decoding.decode_page(Kind.NODE, b"<html>")
