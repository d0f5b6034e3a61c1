"""Names and enumerations that every layer shares."""

from enum import StrEnum
from typing import NamedTuple


class Protocol(StrEnum):
    """The layer-4 protocol of a Service port, in the Kubernetes API's spelling."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @property
    def keyword(self) -> str:
        """The protocol in the spelling of kernel tools: ``tcp``, ``udp`` or ``sctp``."""
        return _KEYWORDS[self]


_KEYWORDS: dict[Protocol, str] = {p: p.value.lower() for p in Protocol}


class IPFamily(StrEnum):
    """An IP family, in the spelling of kube-proxy's ``ip_family`` label."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def bits(self) -> int:
        """The length of an address in bits: 32 or 128."""
        return 32 if self is IPFamily.IPV4 else 128


class Kind(StrEnum):
    """The kinds of API object that svcproxy watches."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"


REQUIRED_KINDS = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})
"""The kinds that every mode watches. Nothing is programmed before all of them are synced."""


class NamespacedName(NamedTuple):
    """The name of an API object; ``namespace`` is empty for a cluster-scoped object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServicePortName(NamedTuple):
    """The identity of a Service port, the unit of work of every backend.

    ``port`` is the port's name; it may be empty if the Service has only one port. The text form is
    kube-proxy's ``namespace/name:port``, without the colon if the name is empty. Hashes in chain
    names are computed from it.
    """

    namespace: str
    name: str
    port: str
    protocol: Protocol

    @property
    def service(self) -> NamespacedName:
        """The Service that the port belongs to."""
        return NamespacedName(self.namespace, self.name)

    def __str__(self) -> str:
        suffix = f":{self.port}" if self.port else ""
        return f"{self.namespace}/{self.name}{suffix}"
