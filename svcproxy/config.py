"""What the daemon is told to do: the ``Config`` value and the parsers of its settings.

Pure: text comes in, a frozen ``Config`` or a ``ConfigError`` goes out. Setting names are
kube-proxy's flag names, so are the defaults, unless a field says otherwise
(source: cmd/kube-proxy/app/options.go and pkg/proxy/apis/config/v1alpha1/defaults.go of 1.36).
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from svcproxy.model.names import IPFamily

METRICS_PORT = 10249
HEALTHZ_PORT = 10256
NODE_PORT_PRIMARY = "primary"


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


AVAILABLE_MODES = frozenset({ProxyMode.IPTABLES})
AVAILABLE_LOCAL_MODES = frozenset({LocalMode.CLUSTER_CIDR, LocalMode.NODE_CIDR})


class Bind(NamedTuple):
    """An IP address and TCP port to listen on; ``host`` is canonical, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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


# --- Go durations -----------------------------------------------------------------------------

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_NANOSECONDS = 2**63 - 1  # Go keeps durations in an int64


def parse_duration(text: str) -> float:
    """Return the seconds that a Go duration such as ``1m30s`` or ``100ms`` stands for.

    Raises:
        ValueError: ``text`` is no duration, or one longer than Go can hold (292 years).
    """
    problem = "not a duration; write for example 30s, 1m30s or 100ms"
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits == "0":
        return 0.0
    total, position = Fraction(0), 0
    while match := _DURATION_PART.match(digits, position):
        total += Fraction(match[1]) * _NANOSECONDS[match[2]]
        position = match.end()
    if position == 0 or position != len(digits) or total > _MAX_NANOSECONDS:
        raise ValueError(problem)
    return sign * int(total) / 1_000_000_000


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as Go prints a duration: ``1h0m0s``, ``1.5s``, ``100ms``, ``0s``."""
    nanoseconds = round(seconds * 1_000_000_000)
    sign, nanoseconds = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, size, limit in (("ns", 1, 10**3), ("\u00b5s", 10**3, 10**6), ("ms", 10**6, 10**9)):
        if nanoseconds < limit:
            return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, _NANOSECONDS["m"])
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{lead}{_decimal(rest, _NANOSECONDS['s'])}s"


def _decimal(value: int, size: int) -> str:
    """Return ``value / size`` exactly, without trailing zeros; ``size`` is a power of ten."""
    whole, rest = divmod(value, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


# --- Other values -----------------------------------------------------------------------------


def parse_bool(text: str) -> bool:
    """Return the truth value that Go's flag parser reads in ``text``.

    Raises:
        ValueError: ``text`` is none of Go's spellings.
    """
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise ValueError("not a truth value; write true or false")


def parse_bind(text: str, default_port: int) -> Bind | None:
    """Read ``address:port``, ``[address]:port`` or a bare address; empty text gives ``None``.

    Raises:
        ValueError: the address is no IP address, or the port is outside 1 to 65535.
    """
    if not text:
        return None
    remedy = f'write for example 127.0.0.1:{default_port}, [::]:{default_port}, or "" to disable'
    host, port = text, str(default_port)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):([0-9]+)", text)
        if match is None:
            raise ValueError(f"not an IP address and port; {remedy}") from None
        host, port = match[1] or match[2] or "", match[3]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; {remedy}") from None
    if not 1 <= int(port) <= 65535:
        raise ValueError("the port must be from 1 to 65535")
    return Bind(str(address), int(port))


def cidr_family(cidr: str) -> IPFamily:
    """Return the family of a canonical CIDR or address."""
    return IPFamily.IPV6 if ":" in cidr else IPFamily.IPV4


def parse_cidrs(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of CIDRs into canonical ones, host bits cleared.

    Raises:
        ValueError: an entry is no CIDR.
    """
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    return tuple(_parse_cidr(entry) for entry in entries)


def _parse_cidr(text: str) -> str:
    problem = f"{text!r} is not a CIDR; write for example 10.244.0.0/16 or fd00::/48"
    if "/" not in text:  # ipaddress would take a bare address, Go does not
        raise ValueError(problem)
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(problem) from None


def _parse_cluster_cidrs(text: str) -> tuple[str, ...]:
    cidrs = parse_cidrs(text)
    if len({cidr_family(cidr) for cidr in cidrs}) != len(cidrs):
        raise ValueError("more than one range of a family; give one IPv4 range, one IPv6, or both")
    return cidrs


def _parse_nodeport_addresses(text: str) -> tuple[str, ...]:
    if NODE_PORT_PRIMARY not in text.split(","):
        return parse_cidrs(text)
    if text != NODE_PORT_PRIMARY:
        raise ValueError("'primary' must stand alone; give either primary or CIDRs")
    return (NODE_PORT_PRIMARY,)


def _parse_integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)

    return parse


_ChoiceT = TypeVar("_ChoiceT", bound=StrEnum)


def _parse_choice(
    choices: type[_ChoiceT], *, empty: _ChoiceT | None = None, available: frozenset[_ChoiceT]
) -> Callable[[str], _ChoiceT]:
    """Make a parser of one of ``choices``; those not ``available`` are known but refused."""
    usable = ", ".join(choice for choice in choices if choice in available)

    def parse(text: str) -> _ChoiceT:
        if text == "" and empty is not None:
            return empty
        if text not in list(choices):
            raise ValueError(f"unknown; choose one of: {usable}")
        if choices(text) not in available:
            raise ValueError(f"not available in this version; choose one of: {usable}")
        return choices(text)

    return parse


def _parse_feature_gates(text: str) -> tuple[tuple[str, bool], ...]:
    gates = []
    for entry in text.split(",") if text else ():
        name, equals, value = entry.strip().partition("=")
        if not (name and equals):
            raise ValueError("not a list of Name=true or Name=false")
        gates.append((name, parse_bool(value)))
    return tuple(gates)


def _parse_hostname(text: str) -> str | None:
    if text and not text.strip():
        raise ValueError("only spaces; give the name of this node's Node object")
    return text.strip().lower() or None


def _parse_profiling(text: str) -> bool:
    if parse_bool(text):
        raise ValueError("profiling is not available in this version; leave the flag out")
    return False


# --- From settings to a Config ----------------------------------------------------------------


class Setting(NamedTuple):
    """Which field of ``Config`` a setting fills, and the parser that reads its text."""

    field: str
    parse: Callable[[str], Any]


SETTINGS: Mapping[str, Setting] = {
    "proxy-mode": Setting(
        "proxy_mode",
        _parse_choice(ProxyMode, empty=ProxyMode.IPTABLES, available=AVAILABLE_MODES),
    ),
    "kubeconfig": Setting("kubeconfig", lambda text: text or None),
    "master": Setting("master", lambda text: text or None),
    "manifests": Setting("manifests", lambda text: text or None),
    "hostname-override": Setting("hostname_override", _parse_hostname),
    "cluster-cidr": Setting("cluster_cidrs", _parse_cluster_cidrs),
    "detect-local-mode": Setting(
        "detect_local_mode",
        _parse_choice(LocalMode, empty=LocalMode.CLUSTER_CIDR, available=AVAILABLE_LOCAL_MODES),
    ),
    "masquerade-all": Setting("masquerade_all", parse_bool),
    "iptables-masquerade-bit": Setting("masquerade_bit", _parse_integer(0, 31)),
    "iptables-sync-period": Setting("iptables_sync_period", parse_duration),
    "iptables-min-sync-period": Setting("iptables_min_sync_period", parse_duration),
    "iptables-localhost-nodeports": Setting("iptables_localhost_nodeports", parse_bool),
    "svcproxy-iptables-variant": Setting(
        "iptables_variant",
        _parse_choice(IptablesVariant, available=frozenset(IptablesVariant)),
    ),
    "nodeport-addresses": Setting("nodeport_addresses", _parse_nodeport_addresses),
    "metrics-bind-address": Setting(
        "metrics_bind_address", lambda text: parse_bind(text, METRICS_PORT)
    ),
    "healthz-bind-address": Setting(
        "healthz_bind_address", lambda text: parse_bind(text, HEALTHZ_PORT)
    ),
    "bind-address-hard-fail": Setting("bind_address_hard_fail", parse_bool),
    "config-sync-period": Setting("config_sync_period", parse_duration),
    "profiling": Setting("profiling", _parse_profiling),
    "v": Setting("verbosity", _parse_integer(0, 2**31 - 1)),
    "logging-format": Setting(
        "logging_format", _parse_choice(LogFormat, available=frozenset(LogFormat))
    ),
    "feature-gates": Setting("feature_gates", _parse_feature_gates),
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
    if config.manifests is not None:
        problems += [
            _problem(name, settings[name], "contradicts --manifests; leave one of the two out")
            for name, value in (("kubeconfig", config.kubeconfig), ("master", config.master))
            if value is not None
        ]
    return problems
