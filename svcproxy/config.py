"""What the daemon is told to do: the ``Config`` value and the parsers of its settings.

Pure: text comes in, a frozen ``Config`` or a ``ConfigError`` goes out. Setting names are
kube-proxy's flag names, so are the defaults, unless a field says otherwise
(source: cmd/kube-proxy/app/options.go and pkg/proxy/apis/config/v1alpha1/defaults.go of 1.36).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.values import (
    NODE_PORT_PRIMARY,
    Bind,
    cidr_family,
    format_duration,
    parse_bind,
    parse_bool,
    parse_choice,
    parse_cluster_cidrs,
    parse_duration,
    parse_feature_gates,
    parse_hostname,
    parse_integer,
    parse_interface,
    parse_nodeport_addresses,
    parse_profiling,
)

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


AVAILABLE_MODES = frozenset({ProxyMode.IPTABLES, ProxyMode.NFTABLES})


class ConfigError(Exception):
    """Settings are unusable; ``problems`` holds one line for each: flag, value, remedy."""

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
    is empty (all local addresses), ``("primary",)`` or canonical CIDRs. A bind address of
    ``None`` means: do not serve.
    """

    proxy_mode: ProxyMode = ProxyMode.IPTABLES
    kubeconfig: str | None = None
    master: str | None = None
    manifests: str | None = None
    hostname_override: str | None = None
    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: LocalMode = LocalMode.CLUSTER_CIDR
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    masquerade_all: bool = False
    masquerade_bit: int = 14
    iptables_sync_period: float = 30.0
    iptables_min_sync_period: float = 1.0
    iptables_localhost_nodeports: bool = True
    iptables_variant: IptablesVariant = IptablesVariant.AUTO
    nodeport_addresses: tuple[str, ...] = ()
    metrics_bind_address: Bind | None = _METRICS_BIND
    healthz_bind_address: Bind | None = _HEALTHZ_BIND
    bind_address_hard_fail: bool = False
    config_sync_period: float = 900.0
    profiling: bool = False
    verbosity: int = 0
    logging_format: LogFormat = LogFormat.TEXT
    feature_gates: tuple[tuple[str, bool], ...] = ()

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


# --- From settings to a Config ----------------------------------------------------------------


class Setting(NamedTuple):
    """Which field of ``Config`` a setting fills, and the parser that reads its text."""

    field: str
    parse: Callable[[str], Any]


SETTINGS: Mapping[str, Setting] = {
    "proxy-mode": Setting(
        "proxy_mode",
        parse_choice(ProxyMode, empty=ProxyMode.IPTABLES, available=AVAILABLE_MODES),
    ),
    "kubeconfig": Setting("kubeconfig", lambda text: text or None),
    "master": Setting("master", lambda text: text or None),
    "manifests": Setting("manifests", lambda text: text or None),
    "hostname-override": Setting("hostname_override", parse_hostname),
    "cluster-cidr": Setting("cluster_cidrs", parse_cluster_cidrs),
    "detect-local-mode": Setting(
        "detect_local_mode",
        parse_choice(LocalMode, empty=LocalMode.CLUSTER_CIDR, available=frozenset(LocalMode)),
    ),
    "pod-bridge-interface": Setting("bridge_interface", parse_interface(15)),
    # One character less than an interface name: the kernel tools want a "+" behind it.
    "pod-interface-name-prefix": Setting("interface_name_prefix", parse_interface(14)),
    "masquerade-all": Setting("masquerade_all", parse_bool),
    "iptables-masquerade-bit": Setting("masquerade_bit", parse_integer(0, 31)),
    "iptables-sync-period": Setting("iptables_sync_period", parse_duration),
    "iptables-min-sync-period": Setting("iptables_min_sync_period", parse_duration),
    "iptables-localhost-nodeports": Setting("iptables_localhost_nodeports", parse_bool),
    "svcproxy-iptables-variant": Setting(
        "iptables_variant",
        parse_choice(IptablesVariant, available=frozenset(IptablesVariant)),
    ),
    "nodeport-addresses": Setting("nodeport_addresses", parse_nodeport_addresses),
    "metrics-bind-address": Setting(
        "metrics_bind_address", lambda text: parse_bind(text, METRICS_PORT)
    ),
    "healthz-bind-address": Setting(
        "healthz_bind_address", lambda text: parse_bind(text, HEALTHZ_PORT)
    ),
    "bind-address-hard-fail": Setting("bind_address_hard_fail", parse_bool),
    "config-sync-period": Setting("config_sync_period", parse_duration),
    "profiling": Setting("profiling", parse_profiling),
    "v": Setting("verbosity", parse_integer(0, 2**31 - 1)),
    "logging-format": Setting(
        "logging_format", parse_choice(LogFormat, available=frozenset(LogFormat))
    ),
    "feature-gates": Setting("feature_gates", parse_feature_gates),
}


def from_settings(settings: Mapping[str, str]) -> Config:
    """Make the ``Config`` that ``settings`` (flag name without dashes to text) describe.

    Raises:
        ConfigError: at least one setting is wrong; every problem is in it.
    """
    fields: dict[str, Any] = {}
    problems = []
    for name, text in settings.items():
        setting = SETTINGS[name]
        try:
            fields[setting.field] = setting.parse(text)
        except ValueError as error:
            problems.append(_problem(name, text, str(error)))
    config = Config(**fields)
    problems += _contradictions(config, settings)
    if problems:
        raise ConfigError(*problems)
    return config


def _problem(name: str, text: str, reason: str) -> str:
    dashes = "-" if len(name) == 1 else "--"
    # repr keeps a stray line break in a value from splitting the line
    return f"{dashes}{name}={text if text.isprintable() and text else repr(text)}: {reason}"


def _contradictions(config: Config, settings: Mapping[str, str]) -> list[str]:
    """Find what no single setting shows; unparsable ones stand at their defaults here."""
    problems = []
    for name, period in (
        ("iptables-sync-period", config.iptables_sync_period),
        ("config-sync-period", config.config_sync_period),
    ):
        if period <= 0:
            problems.append(_problem(name, settings[name], "must be longer than 0s"))
    shortest, period = config.iptables_min_sync_period, config.iptables_sync_period
    if shortest < 0:
        name = "iptables-min-sync-period"
        problems.append(_problem(name, settings[name], "must not be negative"))
    elif 0 < period < shortest:
        problems.append(
            f"--iptables-min-sync-period={format_duration(shortest)}: longer than "
            f"--iptables-sync-period={format_duration(period)}; lower the one or raise the other"
        )
    for mode, name, value in (
        (LocalMode.BRIDGE_INTERFACE, "pod-bridge-interface", config.bridge_interface),
        (
            LocalMode.INTERFACE_NAME_PREFIX,
            "pod-interface-name-prefix",
            config.interface_name_prefix,
        ),
    ):
        if config.detect_local_mode is mode and not value:
            problems.append(f"--detect-local-mode={mode}: needs --{name} as well")
    if config.manifests is not None:
        problems += [
            _problem(name, settings[name], "contradicts --manifests; leave one of the two out")
            for name, value in (("kubeconfig", config.kubeconfig), ("master", config.master))
            if value is not None
        ]
    return problems
