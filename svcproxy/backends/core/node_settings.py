"""Computing the ``Settings`` of a family from the flags and the Node object."""

from ipaddress import ip_address, ip_network

from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.config import Config, LocalMode
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import Node

_LOOPBACK = ip_network("127.0.0.0/8")
_LOCALHOST = {IPFamily.IPV4: "127.0.0.1/32", IPFamily.IPV6: "::1/128"}


class NodeSettings:
    """Computes the settings of one family each time the Node object changes.

    The addresses and pod ranges of a deleted Node stay in force: a Node is often deleted to be
    registered again.

    Args:
        config: the flags.
        family: the IP family.
    """

    def __init__(self, config: Config, family: IPFamily) -> None:
        self._config = config
        self._family = family
        self._node: Node | None = None

    def __call__(self, node: Node | None) -> Settings:
        """Return the settings for the current Node object, ``None`` if there is none."""
        self._node = node or self._node
        return settings_for(self._config, self._family, self._node)


def settings_for(config: Config, family: IPFamily, node: Node | None = None) -> Settings:
    """Return what the rules of a family depend on besides Service ports.

    Args:
        config: the flags.
        family: the IP family.
        node: the Node object; ``None`` while it is unknown.
    """
    address = node_address(config, family, node)
    return Settings(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=_local_traffic(config, family, node),
        node_port_ranges=_node_port_ranges(config, family, node, address),
        node_address=address,
        localhost_node_ports=_serves_localhost(config, family),
    )


def node_address(config: Config, family: IPFamily, node: Node | None) -> str:
    """Return the node's primary address of a family; empty if there is none or it is unknown.

    ``--bind-address`` overrides the Node object for its family, unless it is unspecified (source:
    detectNodeIPs in cmd/kube-proxy/app/server.go of 1.36).
    """
    bind_address = config.bind_address
    if is_of_family(bind_address, family) and not ip_address(bind_address).is_unspecified:
        return bind_address
    return next((a for a in (node.addresses if node else ()) if is_of_family(a, family)), "")


def is_of_family(address: str, family: IPFamily) -> bool:
    """Whether an address or CIDR belongs to a family."""
    return (":" in address) is (family is IPFamily.IPV6)


def _node_port_ranges(
    config: Config, family: IPFamily, node: Node | None, address: str
) -> tuple[str, ...]:
    """Return the CIDRs whose local addresses serve node ports; empty means all.

    With ``primary``, a single-stack node serves the other family on all addresses, as with
    kube-proxy. While the Node is unknown, node ports are served on localhost only.
    """
    if config.nodeport_primary:
        if node is None and not address:
            return (_LOCALHOST[family],)
        return (f"{address}/{family.bits}",) if address else ()
    ranges = config.nodeport_cidrs(family)
    return () if any(cidr.endswith("/0") for cidr in ranges) else ranges


def _serves_localhost(config: Config, family: IPFamily) -> bool:
    """Whether node ports are served on 127.0.0.0/8: IPv4 only, if flags and ranges allow it."""
    if family is IPFamily.IPV6 or not config.iptables_localhost_nodeports:
        return False
    if config.nodeport_primary:
        return False
    ranges = config.nodeport_cidrs(family)
    return not ranges or any(ip_network(cidr).overlaps(_LOOPBACK) for cidr in ranges)


def _local_traffic(config: Config, family: IPFamily, node: Node | None) -> LocalTraffic:
    """Return how to recognise packets of local pods, as ``--detect-local-mode`` says."""
    match config.detect_local_mode:
        case LocalMode.CLUSTER_CIDR:
            return LocalTraffic(source=config.cluster_cidr(family) or "")
        case LocalMode.NODE_CIDR:
            cidrs = node.pod_cidrs if node else ()
            return LocalTraffic(source=next((c for c in cidrs if is_of_family(c, family)), ""))
        case LocalMode.BRIDGE_INTERFACE:
            return LocalTraffic(interface=config.bridge_interface)
        case LocalMode.INTERFACE_NAME_PREFIX:
            return LocalTraffic(interface=f"{config.interface_name_prefix}+")
