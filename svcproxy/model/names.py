"""Names and the few closed vocabularies that every layer shares."""

from enum import StrEnum
from typing import NamedTuple


class Protocol(StrEnum):
    """The layer-4 protocol of a Service port, spelled as the Kubernetes API spells it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @property
    def keyword(self) -> str:
        """The kernel tools' spelling: ``tcp``, ``udp``, ``sctp``."""
        return _KEYWORDS[self]


_KEYWORDS: dict[Protocol, str] = {p: p.value.lower() for p in Protocol}


class IPFamily(StrEnum):
    """An IP family, spelled as kube-proxy's ``ip_family`` label spells it."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def bits(self) -> int:
        """The length of an address in bits: 32 or 128."""
        return 32 if self is IPFamily.IPV4 else 128


class Kind(StrEnum):
    """The kinds of API object that svcproxy follows."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"


REQUIRED_KINDS = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})
"""What every mode follows, and waits for."""


class NamespacedName(NamedTuple):
    """The name of an API object; ``namespace`` is empty for a cluster-scoped one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServicePortName(NamedTuple):
    """The identity of one load-balanced port: the unit of work of every backend.

    ``port`` is the port's name, empty for the single unnamed port of a Service. The text form
    is kube-proxy's ``namespace/name:port`` (no colon when the port has no name); chain hashes
    are computed from it.
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
