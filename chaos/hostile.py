"""Hostile objects: none of them may affect any other object.

A real API server accepts some of them from any client that may create a Service; others can come
only from a broken or hostile API server. The soak and tests/chaos add them during churn and faults.
Tests of single objects: tests/http/test_hostile.py (decoding, over HTTP),
tests/kernel/test_hostile_names.py and test_hostile_texts.py (rules), tests/e2e/test_hostile.py
(which of them a real API server accepts).
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from testbed import manifests as m
from testbed.manifests import Object

Encode = Callable[[dict[str, Any]], bytes]
Hostile = tuple[Object, Encode]

_NAMESPACE = "hostile"
_HOLE = "@raw@"
_ADDRESS = "10.96.200.{}"


def plain(obj: dict[str, Any]) -> bytes:
    """Encode an object as an API server does."""
    return json.dumps(obj).encode()


def with_raw(raw: bytes) -> Encode:
    """Return an encoder that replaces the JSON string ``"@raw@"`` with raw bytes."""

    def encode(obj: dict[str, Any]) -> bytes:
        return plain(obj).replace(json.dumps(_HOLE).encode(), raw)

    return encode


def nested(depth: int) -> bytes:
    """Return JSON objects nested to this depth."""
    return b'{"f:a":' * depth + b"{}" + b"}" * depth


def objects(stolen: str) -> dict[str, Hostile]:
    """Return the hostile objects by name; ``stolen`` is another Service's address."""
    found: dict[str, Hostile] = {}
    for number, (name, obj, encode) in enumerate(_services(stolen), 1):
        obj["metadata"].setdefault("name", name)
        if isinstance(obj.get("spec"), dict) and obj["spec"].get("clusterIP") == "own":
            obj["spec"]["clusterIP"] = _ADDRESS.format(number)
            obj["spec"]["clusterIPs"] = [_ADDRESS.format(number)]
        found[name] = (obj, encode)
    for name, obj, encode in _slices():
        found[name] = (obj, encode)
    return found


def _service(**changed: Any) -> Object:
    obj = m.service("-", ["own"], [m.port(80, name="http", target=8080)], namespace=_NAMESPACE)
    del obj["metadata"]["name"]
    obj["spec"]["ipFamilies"] = ["IPv4"]
    obj["spec"].update(changed)
    return obj


def _with_metadata(**fields: Any) -> Object:
    obj = _service()
    obj["metadata"].update(fields)
    return obj


def _services(stolen: str) -> Iterator[tuple[str, Object, Encode]]:
    managed = [{"manager": "m", "operation": "Apply", "fieldsV1": _HOLE}]
    yield "deep", _with_metadata(managedFields=managed), with_raw(nested(1500))
    yield "deep-status", {**_service(), "status": _HOLE}, with_raw(nested(5000))
    yield "surrogate", _with_metadata(annotations={"a": "\ud800"}), plain
    yield "surrogate-port", _service(ports=[m.port(80, name="\ud800")]), plain
    yield "bytes", _with_metadata(annotations={"a": _HOLE}), with_raw(b'"\xff\xfe"')
    yield "huge", _with_metadata(annotations={"a": "x" * 900_000}), plain
    yield "quote-name", _with_metadata(name='a"\n-A INPUT -j DROP\n#'), plain
    yield "quote-port", _service(ports=[m.port(80, name='a"\n-A INPUT -j DROP\n#')]), plain
    yield "protocol", _service(ports=[m.port(80, protocol="TCP\n-A X")]), plain
    yield "port-range", _service(ports=[m.port(70000), m.port(-1), m.port(0)]), plain
    yield "port-type", _service(ports={"port": "eighty"}), plain
    yield "port-number", _service(ports=[{"port": _HOLE}]), with_raw(b"1e999")
    yield "ports-null", _service(ports=None), plain
    yield "many-ports", _service(ports=[m.port(n, name=f"p{n}") for n in range(1, 1001)]), plain
    ranges = [f"10.{n // 250}.{n % 250}.0/24" for n in range(1000)]
    yield (
        "many-ranges",
        _service(loadBalancerSourceRanges=[*ranges, "junk"], type="LoadBalancer"),
        plain,
    )
    yield "spec-null", {**_service(), "spec": None}, plain
    yield "spec-list", {**_service(), "spec": []}, plain
    yield "labels-list", _with_metadata(labels=["a"]), plain
    yield "mapped", _service(clusterIP="::1.2.3.4", clusterIPs=["::1.2.3.4"]), plain
    yield "loopback", _service(clusterIP="127.0.0.1", clusterIPs=["127.0.0.1"]), plain
    yield "no-address", _service(clusterIP="10.96.0.300", clusterIPs=["10.96.0.300"]), plain
    yield "scope", _service(clusterIP="fe80::1%eth0", clusterIPs=["fe80::1%eth0"]), plain
    yield "thief", _service(externalIPs=[stolen]), plain
    yield "no-metadata", {**_service(), "metadata": {"namespace": _NAMESPACE}}, plain


def _slices() -> Iterator[tuple[str, Object, Encode]]:
    owner = m.service(
        "surrogate", ["10.96.200.250"], [m.port(80, name="http")], namespace=_NAMESPACE
    )

    def piece(name: str, endpoints: list[Any], **fields: Any) -> Object:
        obj = m.endpoint_slice(owner, [], suffix=name)
        return {**obj, "endpoints": endpoints, **fields}

    yield (
        "slice-deep",
        piece("deep", [{"addresses": ["10.245.0.1"], "x": _HOLE}]),
        with_raw(nested(1500)),
    )
    yield "slice-bytes", piece("bytes", [{"addresses": ["10.245.0.1", _HOLE]}]), with_raw(b'"\xff"')
    junk = ["junk", "", "10.245.0.1/24", "127.0.0.1", "224.0.0.1", "fe80::1%eth0", "1.2.3.4\n-A X"]
    yield "slice-junk", piece("junk", [{"addresses": [a]} for a in junk]), plain
    many = [{"addresses": [f"10.245.{n // 250}.{n % 250}"]} for n in range(2000)]
    yield "slice-many", piece("many", many), plain
    yield "slice-null", piece("null", [None], ports=None), plain
    ports = [{"name": "http", "port": 1 << 70, "protocol": 'T"'}]
    yield "slice-port", piece("port", [{"addresses": ["10.245.0.1"]}], ports=ports), plain
    yield "slice-type", piece("type", [{"addresses": "10.245.0.1", "nodeName": 5}]), plain
