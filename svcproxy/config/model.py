"""The ``Config`` value: everything the daemon needs to know before it starts.

Pure. A default is what kube-proxy 1.36 does without any flag or configuration file.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from svcproxy.config.gates import EXTERNAL_IPS
from svcproxy.model.names import IPFamily
from svcproxy.values import NODE_PORT_PRIMARY, Bind, cidr_family

DEFAULT_MIN_SYNC_PERIOD = 1.0
"""Seconds; kube-proxy 1.36 has it for iptables and nftables mode (v1alpha1 defaults)."""

METRICS_PORT = 10249
HEALTHZ_PORT = 10256


class ProxyMode(StrEnum):
    """The kernel mechanism that carries the Services."""

    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"


class LocalMode(StrEnum):
    """How traffic from this cluster's pods is told from outside traffic."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class IptablesVariant(StrEnum):
    """Which of the two kernel interfaces of iptables is used."""

    AUTO = "auto"
    NFT = "nft"
    LEGACY = "legacy"


AVAILABLE_MODES = frozenset({ProxyMode.IPTABLES, ProxyMode.IPVS, ProxyMode.NFTABLES})


class ConfigError(Exception):
    """Settings are unusable; ``problems`` holds one line for each: name, value, remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


_METRICS_BIND = Bind("127.0.0.1", METRICS_PORT)
_HEALTHZ_BIND = Bind("0.0.0.0", HEALTHZ_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the daemon needs to know before it starts; all periods are in seconds.

    ``kubeconfig``, ``master`` and ``manifests`` are ``None`` when not given; with none of them
    the pod's own credentials are used. ``hostname_override`` is trimmed and in lower case.
    ``cluster_cidrs`` holds at most one canonical CIDR for each family. ``nodeport_addresses``
    is empty (all local addresses), ``("primary",)`` or canonical CIDRs. A bind address to serve
    on of ``None`` means: do not serve. ``bind_address`` is no such: it overrides what is taken
    for the node's own primary address, and the unspecified addresses override nothing.

    A timeout of 0 leaves the kernel's value alone, so does ``conntrack_max_per_core`` of 0.

    What begins with the name of a mode holds for that mode only; ``sync_period``,
    ``min_sync_period``, ``masquerade_all`` and ``masquerade_bit`` choose for the present mode.
    """

    # The run as such
    config: str | None = None
    write_config_to: str | None = None
    cleanup: bool = False
    init_only: bool = False
    feature_gates: tuple[tuple[str, bool], ...] = ()
    oom_score_adj: int = -999

    # Where Services come from
    kubeconfig: str | None = None
    master: str | None = None
    manifests: str | None = None
    hostname_override: str | None = None
    bind_address: str = "0.0.0.0"
    kube_api_content_type: str = "application/vnd.kubernetes.protobuf"
    kube_api_accept_content_types: str = ""
    kube_api_qps: float = 5.0
    kube_api_burst: int = 10
    config_sync_period: float = 900.0

    # What is programmed
    proxy_mode: ProxyMode = ProxyMode.IPTABLES
    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: LocalMode = LocalMode.CLUSTER_CIDR
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    nodeport_addresses: tuple[str, ...] = ()
    iptables_masquerade_bit: int = 14
    iptables_masquerade_all: bool = False
    iptables_localhost_nodeports: bool = True
    iptables_sync_period: float = 30.0
    iptables_min_sync_period: float = DEFAULT_MIN_SYNC_PERIOD
    iptables_variant: IptablesVariant = IptablesVariant.AUTO
    nftables_masquerade_bit: int = 14
    nftables_masquerade_all: bool = False
    nftables_sync_period: float = 30.0
    nftables_min_sync_period: float = DEFAULT_MIN_SYNC_PERIOD
    ipvs_sync_period: float = 30.0
    ipvs_min_sync_period: float = DEFAULT_MIN_SYNC_PERIOD
    ipvs_scheduler: str = ""
    ipvs_exclude_cidrs: tuple[str, ...] = ()
    ipvs_strict_arp: bool = False
    ipvs_tcp_timeout: float = 0.0
    ipvs_tcp_fin_timeout: float = 0.0
    ipvs_udp_timeout: float = 0.0
    ipvs_graceful_termination_limit: float = 0.0

    # Connection tracking
    conntrack_max_per_core: int = 32 * 1024
    conntrack_min: int = 128 * 1024
    conntrack_tcp_timeout_established: float = 86400.0
    conntrack_tcp_timeout_close_wait: float = 3600.0
    conntrack_tcp_be_liberal: bool = False
    conntrack_udp_timeout: float = 0.0
    conntrack_udp_timeout_stream: float = 0.0

    # Health, metrics and log
    metrics_bind_address: Bind | None = _METRICS_BIND
    healthz_bind_address: Bind | None = _HEALTHZ_BIND
    bind_address_hard_fail: bool = False
    profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    verbosity: int = 0
    vmodule: tuple[tuple[str, int], ...] = ()
    logging_format: LogFormat = LogFormat.TEXT
    log_flush_frequency: float = 5.0
    log_text_split_stream: bool = False
    log_text_info_buffer_size: str = "0"
    log_json_split_stream: bool = False
    log_json_info_buffer_size: str = "0"

    @property
    def sync_period(self) -> float:
        """Seconds between two comparisons of the whole kernel state, in the present mode."""
        match self.proxy_mode:
            case ProxyMode.IPVS:
                return self.ipvs_sync_period
            case ProxyMode.NFTABLES:
                return self.nftables_sync_period
            case ProxyMode.IPTABLES:
                return self.iptables_sync_period

    @property
    def min_sync_period(self) -> float:
        """Shortest time in seconds from one sync to the next, in the present mode."""
        match self.proxy_mode:
            case ProxyMode.IPVS:
                return self.ipvs_min_sync_period
            case ProxyMode.NFTABLES:
                return self.nftables_min_sync_period
            case ProxyMode.IPTABLES:
                return self.iptables_min_sync_period

    @property
    def adapts_sync_pause(self) -> bool:
        """Whether the time between two syncs may be shorter than ``min_sync_period``.

        At the default nobody has asked for that very time; kube-proxy's reason for it is that
        its syncs are expensive, and it reads a 0 in its configuration file as this default.
        """
        return self.min_sync_period == DEFAULT_MIN_SYNC_PERIOD

    @property
    def masquerade_bit(self) -> int:
        """Packet mark bit that asks for masquerading; IPVS uses that of iptables."""
        if self.proxy_mode is ProxyMode.NFTABLES:
            return self.nftables_masquerade_bit
        return self.iptables_masquerade_bit

    @property
    def masquerade_all(self) -> bool:
        """Whether all traffic to cluster IPs is masqueraded; IPVS asks iptables' setting."""
        if self.proxy_mode is ProxyMode.NFTABLES:
            return self.nftables_masquerade_all
        return self.iptables_masquerade_all

    @property
    def allows_external_ips(self) -> bool:
        """Whether ``spec.externalIPs`` of Services are programmed."""
        return dict(self.feature_gates).get(EXTERNAL_IPS, True)

    @property
    def nodeport_primary(self) -> bool:
        """Whether node ports are served on the node's primary addresses only."""
        return self.nodeport_addresses == (NODE_PORT_PRIMARY,)

    def cluster_cidr(self, family: IPFamily) -> str | None:
        """Return the pod range of ``family``, or ``None`` when none is configured."""
        return next((cidr for cidr in self.cluster_cidrs if cidr_family(cidr) is family), None)

    def nodeport_cidrs(self, family: IPFamily) -> tuple[str, ...]:
        """Return the ranges of ``family`` that node ports are limited to.

        Empty when there is no limit by range; ``nodeport_primary`` is a case of its own.
        """
        if self.nodeport_primary:
            return ()
        return tuple(cidr for cidr in self.nodeport_addresses if cidr_family(cidr) is family)


class Loaded(NamedTuple):
    """A usable ``Config``, and what its operator should know: a line for each warning.

    ``file`` is what the configuration file says, empty if there is none.
    """

    config: Config
    warnings: tuple[str, ...] = ()
    file: bytes = b""
