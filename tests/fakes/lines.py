"""Responses of an API server as bytes: pages, events, bookmarks and failures."""

import json
from typing import Any


def item(name: str, version: int, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    return {"metadata": metadata, **fields}


def event(type_: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode()


def bookmark(version: int, *, end: bool = False) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return event("BOOKMARK", {"metadata": metadata})


def error(code: int, message: str = "", reason: str = "") -> bytes:
    return event("ERROR", {"code": code, "message": message, "reason": reason})


def status(code: int, message: str = "") -> bytes:
    return json.dumps({"kind": "Status", "code": code, "message": message}).encode()


def page(
    *items: dict[str, Any], version: int = 10, token: str = "", kind: str = "Service"
) -> bytes:
    metadata = {"resourceVersion": str(version), "continue": token}
    api_version = {"EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}
    head = {"kind": f"{kind}List", "apiVersion": api_version.get(kind, "v1")}
    return json.dumps({**head, "metadata": metadata, "items": items}).encode()
