"""An object is refused, or all of its texts are valid for the API server."""

import json
import re
from typing import Any

import msgspec

from fuzz.structure import Source
from svcproxy.kube.core.decoding import decode_object
from svcproxy.kube.core.parse import ParseError, parse_object
from svcproxy.kube.core.wire import convert_object
from svcproxy.model.names import Kind

SEEDS = (
    b"\x00",
    bytes(range(256)),
    bytes([0, 5, 3, 255, 7, 1, 200, 9] * 40),
    bytes([1, 9, 8, 7, 0, 3, 6, 60, 2] * 40),
    b"\x02" + b'x"\n-A INPUT' * 20,
    b"\x03" + b"\xed\xa0\x80" * 30,
)
_WORDS = (
    "", "web", "default", "10.0.0.1", "fd00::1", "::ffff:127.0.0.1", "127.0.0.1", "10.0.0.0/8",
    "http", "TCP", "SCTP", "tcp", "None", "ClientIP", "Local", "LoadBalancer", "NodePort", "IPv4",
    "IPv6", "FQDN", "VIP", "InternalIP", "zone-a", 'x"', "x\n", "a" * 64, "-", "a.b",
    "2024-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.9-23:59",
)  # fmt: skip
_NUMBERS = (0, 1, 80, 30080, 65535, 65536, -1, 2**63, 10**30)
_ANNOTATION = "svcproxy.io/ipvs-scheduler"
_ANNOTATIONS = frozenset({_ANNOTATION})
_SAFE = re.compile(r"[A-Za-z0-9._:/-]*").fullmatch


def check(data: bytes) -> None:
    """Make an object from the bytes, and parse it as from the API and as from a manifest."""
    source = Source(data)
    kind = source.choice(tuple(Kind))
    obj = _OBJECTS[kind](source)
    for wire_object in (convert_object, _decoded):
        try:
            parsed = parse_object(wire_object(kind, obj), _ANNOTATIONS)
        except (ParseError, UnicodeError):
            continue
        for text in _texts(msgspec.to_builtins(parsed)):
            assert _SAFE(text), text


def _decoded(kind: Kind, obj: Any) -> Any:
    return decode_object(kind, json.dumps(obj).encode())


def _texts(value: Any) -> list[str]:
    """All texts of a parsed object except annotations, which are free text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [t for key, v in value.items() if key != "annotations" for t in _texts(v)]
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    return []


def _any(source: Source) -> Any:
    kind = source.number(12)
    if kind < 6:
        return source.choice(_WORDS)
    if kind == 6:
        return source.text()
    if kind == 7:
        return source.choice(_NUMBERS)
    return (None, True, [], {})[kind - 8]


def _text(source: Source) -> Any:
    return source.choice(_WORDS) if source.number(8) else _any(source)


def _number(source: Source) -> Any:
    return source.choice(_NUMBERS) if source.number(8) else _any(source)


def _list(source: Source, make: Any) -> Any:
    return [make(source) for _ in range(source.number(4))] if source.number(16) else _any(source)


def _metadata(source: Source) -> Any:
    labels = ("kubernetes.io/service-name", "topology.kubernetes.io/zone", "other")
    return {
        "name": _text(source) if source.flag() else "web",
        "namespace": _text(source) if source.flag() else "default",
        "labels": {source.choice(labels): _text(source)},
        "annotations": {_ANNOTATION: _text(source)},
        "creationTimestamp": _text(source),
    }


def _port(source: Source) -> Any:
    names = {"name": _text(source), "protocol": _text(source)}
    return {**names, "port": _number(source), "nodePort": _number(source)}


def _service(source: Source) -> Any:
    client_ip = {"clientIP": {"timeoutSeconds": _number(source)}}
    ingress = {"ip": _text(source), "ipMode": _text(source)}
    spec = {
        "type": _text(source),
        "clusterIP": _text(source) if source.flag() else "10.0.0.1",
        "clusterIPs": _list(source, _text),
        "externalIPs": _list(source, _text),
        "ports": _list(source, _port),
        "loadBalancerSourceRanges": _list(source, _text),
        "sessionAffinity": _text(source),
        "sessionAffinityConfig": client_ip,
        "externalTrafficPolicy": _text(source),
        "healthCheckNodePort": _number(source),
    }
    status = {"loadBalancer": {"ingress": [ingress]}}
    return {"metadata": _metadata(source), "spec": spec, "status": status}


def _hint(source: Source) -> Any:
    return {"name": _text(source)}


def _endpoint(source: Source) -> Any:
    return {
        "addresses": _list(source, _text),
        "nodeName": _text(source),
        "hints": {"forZones": _list(source, _hint), "forNodes": _list(source, _hint)},
        "conditions": {"ready": source.choice((True, False, None))},
    }


def _slice(source: Source) -> Any:
    return {
        "metadata": _metadata(source),
        "addressType": source.choice(("IPv4", "IPv6", "FQDN", "", 'x"')),
        "ports": _list(source, _port),
        "endpoints": _list(source, _endpoint),
    }


def _node(source: Source) -> Any:
    address = {"type": "InternalIP", "address": _text(source)}
    spec = {"podCIDRs": _list(source, _text), "taints": [{"key": _text(source)}]}
    return {"metadata": _metadata(source), "spec": spec, "status": {"addresses": [address]}}


def _service_cidr(source: Source) -> Any:
    return {"metadata": _metadata(source), "spec": {"cidrs": _list(source, _text)}}


_OBJECTS = {
    Kind.SERVICE: _service,
    Kind.ENDPOINT_SLICE: _slice,
    Kind.NODE: _node,
    Kind.SERVICE_CIDR: _service_cidr,
}
