"""What decides about rules besides Services: flags and the Node object."""

import msgspec

from svcproxy.model.names import IPFamily


class LocalTraffic(msgspec.Struct, frozen=True, gc=False):
    """How packets of pods on this node (or in this cluster) are told from others.

    One of ``source`` (a CIDR) and ``interface`` (``name`` or, for a prefix, ``name+``) is set;
    neither means that the detection is off (``--detect-local-mode`` and its companions).
    """

    source: str = ""
    interface: str = ""

    def __bool__(self) -> bool:
        return bool(self.source or self.interface)

    @property
    def matches_all(self) -> bool:
        """Whether every address counts as local, so that no traffic comes from outside."""
        return self.source.endswith("/0")


class Settings(msgspec.Struct, frozen=True, gc=False):
    """Everything that the rules of one family depend on besides the Service ports.

    Attributes:
        family: the IP family.
        masquerade_bit: the fwmark bit that asks for masquerading (0 to 31).
        masquerade_all: masquerade everything sent to a cluster IP.
        local_traffic: how local pods' packets are recognised.
        node_port_ranges: CIDRs whose local addresses serve node ports; empty means all.
        node_address: the node's primary address, empty when unknown; a load balancer's source
            ranges that hold it admit the node itself.
        localhost_node_ports: serve node ports on 127.0.0.0/8 (IPv4 only).
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
