"""API objects as the API server sends them, with fields that tests can override."""

from typing import Any

Obj = dict[str, Any]


def service(name: str = "web", *, namespace: str | None = "default", **spec: Any) -> Obj:
    """Make a ClusterIP Service with one port."""
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": _metadata(name, namespace),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            **spec,
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(
    name: str = "web-1", *, service_name: str = "web", addresses: tuple[str, ...] = (), **top: Any
) -> Obj:
    """Make an IPv4 EndpointSlice of a Service in the default namespace."""
    metadata = _metadata(name, "default")
    metadata["labels"] = {"kubernetes.io/service-name": service_name}
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address]} for address in addresses],
        **top,
    }


def node(name: str = "node-1", **top: Any) -> Obj:
    """Make a Node."""
    return {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, **top}


def service_cidr(name: str = "kubernetes", *cidrs: str) -> Obj:
    """Make a ServiceCIDR, of one IPv4 range if none is given."""
    return {
        "kind": "ServiceCIDR",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs or ["10.96.0.0/16"])},
    }


def _metadata(name: str, namespace: str | None) -> Obj:
    return {"name": name} if namespace is None else {"name": name, "namespace": namespace}
