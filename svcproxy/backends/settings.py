"""What rules depend on besides Services, from flags and the Node object."""

import msgspec

from svcproxy.model.names import IPFamily


class LocalTraffic(msgspec.Struct, frozen=True, gc=False):
    """How to recognise packets of pods on this node or in this cluster (``--detect-local-mode``).

    If neither attribute is set, they cannot be recognised.

    Attributes:
        source: the CIDR of their source addresses.
        interface: the interface on which they arrive; ``name+`` for all with that prefix.
    """

    source: str = ""
    interface: str = ""

    def __bool__(self) -> bool:
        return bool(self.source or self.interface)

    @property
    def matches_all(self) -> bool:
        """Whether the CIDR contains all addresses, so that no packet comes from outside."""
        return self.source.endswith("/0")


class Settings(msgspec.Struct, frozen=True, gc=False):
    """Everything that the rules of one family depend on besides the Service ports.

    Attributes:
        family: the IP family.
        masquerade_bit: the fwmark bit that asks for masquerading (0 to 31).
        masquerade_all: whether to masquerade all packets to cluster IPs.
        local_traffic: how to recognise packets of local pods.
        node_port_ranges: the CIDRs whose local addresses serve node ports; empty means all.
        node_address: the node's primary address, empty if unknown. If it is in a load balancer's
            source ranges, the node itself may use the load balancer.
        localhost_node_ports: whether to serve node ports on 127.0.0.0/8 (IPv4 only).
    """

    family: IPFamily
    masquerade_bit: int = 14
    masquerade_all: bool = False
    local_traffic: LocalTraffic = LocalTraffic()
    node_port_ranges: tuple[str, ...] = ()
    node_address: str = ""
    localhost_node_ports: bool = True

    @property
    def mark(self) -> str:
        """The masquerade mark in hexadecimal, for example ``0x4000``."""
        return f"{1 << self.masquerade_bit:#x}"
