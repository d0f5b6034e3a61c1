"""Kubernetes objects as plain dictionaries, and a folder of manifests for the daemon."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def port(
    number: int,
    *,
    name: str = "",
    target: int | None = None,
    protocol: str = "TCP",
    node_port: int | None = None,
) -> Object:
    """One entry of a Service's ``spec.ports``; ``target`` is the same port if not given."""
    return _filled(
        name=name or None,
        protocol=protocol,
        port=number,
        targetPort=number if target is None else target,
        nodePort=node_port,
    )


def service(
    name: str,
    cluster_ips: Iterable[str],
    ports: Iterable[Object],
    *,
    namespace: str = "default",
    type: str = "ClusterIP",  # noqa: A002 - the field's name
    load_balancer_ips: Iterable[str] = (),
    **spec: Any,
) -> Object:
    """A Service; ``spec`` are further fields by their API names (``externalIPs=[...]``)."""
    ips = list(cluster_ips)
    families = ["IPv6" if ":" in ip else "IPv4" for ip in ips]
    ingress = [{"ip": ip, "ipMode": "VIP"} for ip in load_balancer_ips]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": type,
            "clusterIP": ips[0] if ips else "None",
            "clusterIPs": ips or ["None"],
            "ipFamilies": families,
            "ports": list(ports),
            **spec,
        },
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def endpoint(
    address: str,
    *,
    node: str = "",
    zone: str = "",
    hints: Mapping[str, Iterable[str]] | None = None,
    **conditions: bool,
) -> Object:
    """One entry of a slice's ``endpoints``.

    Args:
        address: the pod's address.
        node: the name of its node.
        zone: the zone of that node.
        hints: topology hints, ``{"forZones": ["a"], "forNodes": ["node1"]}``.
        conditions: ``ready``, ``serving``, ``terminating``; absent ones are left out.
    """
    given = {kind: [{"name": n} for n in names] for kind, names in (hints or {}).items()}
    return _filled(
        addresses=[address],
        conditions=conditions or None,
        nodeName=node or None,
        zone=zone or None,
        hints=given or None,
    )


def endpoint_slice(
    owner: Object,
    endpoints: Iterable[str | Object],
    *,
    suffix: str = "",
    ports: Iterable[Object] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """An EndpointSlice of a Service, its family that of the endpoints.

    Args:
        owner: the Service.
        endpoints: addresses, or what ``endpoint`` made; an empty slice is an IPv4 one.
        suffix: distinguishes several slices of one Service and family.
        ports: ``spec.ports`` entries to use instead of the Service's.
        annotations: annotations of the slice.
    """
    entries = [endpoint(e) if isinstance(e, str) else e for e in endpoints]
    family = "IPv6" if entries and ":" in entries[0]["addresses"][0] else "IPv4"
    meta = owner["metadata"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _filled(
            name=f"{meta['name']}-{family.lower()}{suffix and '-'}{suffix}",
            namespace=meta["namespace"],
            labels={"kubernetes.io/service-name": meta["name"]},
            annotations=dict(annotations) if annotations else None,
        ),
        "addressType": family,
        "ports": [
            {
                "name": entry.get("name", ""),
                "protocol": entry.get("protocol", "TCP"),
                "port": entry.get("targetPort", entry["port"]),
            }
            for entry in (owner["spec"]["ports"] if ports is None else ports)
        ],
        "endpoints": entries,
    }


def node(
    name: str,
    *,
    addresses: Iterable[str] = (),
    pod_cidrs: Iterable[str] = (),
    zone: str = "",
    **spec: Any,
) -> Object:
    """A Node; ``spec`` are further fields of its spec (``taints=[...]``)."""
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    cidrs = list(pod_cidrs)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": _filled(podCIDR=cidrs[0] if cidrs else None, podCIDRs=cidrs or None, **spec),
        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]},
    }


def service_cidr(name: str, cidrs: Iterable[str]) -> Object:
    """A ServiceCIDR, of either family or both."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }


class ManifestFolder:
    """A folder with one manifest for each object, for the daemon's ``--manifests``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def put(self, *objects: Object) -> float:
        """Write objects, each atomically; return ``time.monotonic()`` after the last."""
        for obj in objects:
            self.write(self.file(obj).name, yaml.dump(obj, Dumper=_Dumper, sort_keys=False))
        return time.monotonic()

    def write(self, name: str, text: str) -> float:
        """Write any text to a file atomically; return ``time.monotonic()`` after it."""
        # The daemon never reads a partial file, and ignores the temporary one: it is not *.yaml.
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)  # noqa: PTH105 - says what it is about
        return time.monotonic()

    def remove(self, *objects: Object) -> float:
        """Delete objects' files; return ``time.monotonic()`` after the last."""
        for obj in objects:
            self.file(obj).unlink()
        return time.monotonic()

    def file(self, obj: Object) -> Path:
        """The file of an object."""
        meta = obj["metadata"]
        parts = [obj["kind"].lower(), meta.get("namespace", ""), meta["name"]]
        return self.path / ("-".join(part for part in parts if part) + ".yaml")


def _filled(**fields: Any) -> Object:
    return {name: value for name, value in fields.items() if value is not None}
