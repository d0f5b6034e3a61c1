"""The ``Config`` value: all settings of the daemon.

The defaults are those of kube-proxy 1.36 without flags and configuration file.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from svcproxy.config.gates import EXTERNAL_IPS
from svcproxy.config.parsing import NODE_PORT_PRIMARY, Bind, cidr_family
from svcproxy.model.names import IPFamily, NamespacedName

DEFAULT_MIN_SYNC_PERIOD = 1.0
"""Seconds; the default of kube-proxy 1.36 in iptables and nftables mode (v1alpha1 defaults)."""

METRICS_PORT = 10249
HEALTHZ_PORT = 10256


class ProxyMode(StrEnum):
    """The kernel mechanism that implements Services."""

    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"


class LocalMode(StrEnum):
    """How traffic from pods is distinguished from traffic from outside."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class IptablesVariant(StrEnum):
    """The kernel interface that the iptables commands use."""

    AUTO = "auto"
    NFT = "nft"
    LEGACY = "legacy"


class AccountingLevel(StrEnum):
    """What the kernel counts for each Service."""

    NONE = "none"
    REFUSALS = "refusals"
    CONNECTIONS = "connections"


AVAILABLE_MODES = frozenset({ProxyMode.IPTABLES, ProxyMode.IPVS, ProxyMode.NFTABLES})


class ConfigError(Exception):
    """Settings are invalid; ``problems`` has one line for each, with name, value and remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


_METRICS_BIND = Bind("127.0.0.1", METRICS_PORT)
_HEALTHZ_BIND = Bind("0.0.0.0", HEALTHZ_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of the daemon; durations are in seconds.

    ``kubeconfig``, ``master`` and ``manifests`` are ``None`` if not given; without all three, the
    service account of the pod is used. ``hostname_override`` is trimmed and in lower case.
    ``cluster_cidrs`` holds at most one canonical CIDR of each family. ``nodeport_addresses`` is empty
    (all local addresses), ``("primary",)`` or canonical CIDRs. A ``None`` in
    ``metrics_bind_address`` or ``healthz_bind_address`` disables the server. ``bind_address``
    overrides the node's primary address; an unspecified address overrides nothing. An empty
    ``admin_socket`` disables it.

    A timeout of 0 keeps the kernel's value, and so does a ``conntrack_max_per_core`` of 0.

    Fields that begin with the name of a mode apply to that mode only. ``sync_period``,
    ``min_sync_period``, ``masquerade_all`` and ``masquerade_bit`` return those of the current mode.
    """

    # General
    config: str | None = None
    write_config_to: str | None = None
    cleanup: bool = False
    init_only: bool = False
    feature_gates: tuple[tuple[str, bool], ...] = ()
    oom_score_adj: int = -999

    # Source of Services
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

    # Proxying
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
    admin_socket: str = "/run/svcproxy/admin.sock"
    ui: bool = True
    accounting: AccountingLevel = AccountingLevel.NONE
    refusal_log_group: int = 0
    service_metrics: tuple[NamespacedName, ...] = ()
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
        """Seconds between two comparisons of the whole kernel state, in the current mode."""
        match self.proxy_mode:
            case ProxyMode.IPVS:
                return self.ipvs_sync_period
            case ProxyMode.NFTABLES:
                return self.nftables_sync_period
            case ProxyMode.IPTABLES:
                return self.iptables_sync_period

    @property
    def min_sync_period(self) -> float:
        """Minimum number of seconds between two syncs, in the current mode."""
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

        It may if the setting has its default: the operator did not ask for that time, and
        kube-proxy has this default because its syncs are expensive. kube-proxy also reads a 0 in
        its configuration file as this default.
        """
        return self.min_sync_period == DEFAULT_MIN_SYNC_PERIOD

    @property
    def masquerade_bit(self) -> int:
        """The bit of the packet mark that requests masquerading; IPVS mode uses iptables' setting."""
        if self.proxy_mode is ProxyMode.NFTABLES:
            return self.nftables_masquerade_bit
        return self.iptables_masquerade_bit

    @property
    def masquerade_all(self) -> bool:
        """Whether all traffic to cluster IPs is masqueraded; IPVS mode uses iptables' setting."""
        if self.proxy_mode is ProxyMode.NFTABLES:
            return self.nftables_masquerade_all
        return self.iptables_masquerade_all

    @property
    def allows_external_ips(self) -> bool:
        """Whether ``spec.externalIPs`` of Services are honoured."""
        return dict(self.feature_gates).get(EXTERNAL_IPS, True)

    @property
    def nodeport_primary(self) -> bool:
        """Whether node ports are served at the node's primary addresses only."""
        return self.nodeport_addresses == (NODE_PORT_PRIMARY,)

    def cluster_cidr(self, family: IPFamily) -> str | None:
        """Return the pod CIDR of ``family``; ``None`` if none is configured."""
        return next((cidr for cidr in self.cluster_cidrs if cidr_family(cidr) is family), None)

    def nodeport_cidrs(self, family: IPFamily) -> tuple[str, ...]:
        """Return the CIDRs of ``family`` to which node ports are restricted.

        Empty if they are not restricted by CIDR; see also ``nodeport_primary``.
        """
        if self.nodeport_primary:
            return ()
        return tuple(cidr for cidr in self.nodeport_addresses if cidr_family(cidr) is family)


class Loaded(NamedTuple):
    """A valid ``Config`` with one line for each warning.

    ``file`` is the content of the configuration file; empty if there is none.
    """

    config: Config
    warnings: tuple[str, ...] = ()
    file: bytes = b""
