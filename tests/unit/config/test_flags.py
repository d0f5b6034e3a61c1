from typing import Any

import pytest

from svcproxy.config import (
    AVAILABLE_MODES,
    FLAGS,
    AccountingLevel,
    Config,
    ConfigError,
    IptablesVariant,
    Loaded,
    LocalMode,
    LogFormat,
    ProxyMode,
    default_of,
    from_settings,
)
from svcproxy.config.checks import find_errors
from svcproxy.config.parsing import Bind
from svcproxy.model.names import IPFamily, NamespacedName


def load(**settings: str) -> Loaded:
    return from_settings({name.replace("_", "-"): text for name, text in settings.items()})


def config(**settings: str) -> Config:
    return load(**settings).config


def problems(**settings: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(**settings)
    return caught.value.problems


# The defaults in `kube-proxy --help` of 1.36.2
KUBE_PROXY_DEFAULTS = {
    "config-sync-period": "15m0s",
    "conntrack-max-per-core": "32768",
    "conntrack-min": "131072",
    "conntrack-tcp-timeout-close-wait": "1h0m0s",
    "conntrack-tcp-timeout-established": "24h0m0s",
    "bind-address": "0.0.0.0",
    "healthz-bind-address": "0.0.0.0:10256",
    "iptables-localhost-nodeports": "true",
    "iptables-masquerade-bit": "14",
    "iptables-min-sync-period": "1s",
    "iptables-sync-period": "30s",
    "ipvs-min-sync-period": "1s",
    "ipvs-sync-period": "30s",
    "kube-api-burst": "10",
    "kube-api-content-type": "application/vnd.kubernetes.protobuf",
    "kube-api-qps": "5",
    "log-flush-frequency": "5s",
    "logging-format": "text",
    "metrics-bind-address": "127.0.0.1:10249",
    "oom-score-adj": "-999",
}
OUR_DEFAULTS = {
    # Empty in kube-proxy, which then uses these
    "proxy-mode": "iptables",
    "detect-local-mode": "ClusterCIDR",
    "svcproxy-iptables-variant": "auto",
    "svcproxy-admin-socket": "/run/svcproxy/admin.sock",
    "svcproxy-ui": "true",
    "svcproxy-accounting": "none",
    "svcproxy-refusal-log-group": "0",
    # Zero values, which kube-proxy does not print
    "v": "0",
    "log-text-info-buffer-size": "0",
    "log-json-info-buffer-size": "0",
    **dict.fromkeys(
        (
            *("conntrack-udp-timeout", "conntrack-udp-timeout-stream"),
            *("ipvs-tcp-timeout", "ipvs-tcpfin-timeout", "ipvs-udp-timeout"),
            "svcproxy-ipvs-graceful-termination-limit",
        ),
        "0s",
    ),
}


def test_defaults_are_those_of_kube_proxy() -> None:
    assert load() == Loaded(Config())
    shown = {name: default_of(flag) for name, flag in FLAGS.items()}
    assert {name: text for name, text in shown.items() if text not in {"", "false"}} == {
        **KUBE_PROXY_DEFAULTS,
        **OUR_DEFAULTS,
    }


# A value other than the default for each flag
OTHER_VALUES = {
    "proxy-mode": ("nftables", ProxyMode.NFTABLES),
    "kubeconfig": ("/etc/kubeconfig", "/etc/kubeconfig"),
    "master": ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
    "manifests": ("/m", "/m"),
    "hostname-override": (" Node-1 ", "node-1"),
    "bind-address": ("FD00:0::1", "fd00::1"),
    "kube-api-content-type": ("application/json", "application/json"),
    "kube-api-qps": ("0.5", 0.5),
    "kube-api-burst": ("0", 0),
    "config-sync-period": ("1h", 3600.0),
    "cluster-cidr": ("010.244.0.0/16,fd00:244::/56", ("10.244.0.0/16", "fd00:244::/56")),
    "detect-local-mode": ("NodeCIDR", LocalMode.NODE_CIDR),
    "pod-bridge-interface": ("cni0", "cni0"),
    "pod-interface-name-prefix": ("veth", "veth"),
    "masquerade-all": ("true", True),
    "nodeport-addresses": ("192.168.0.0/16", ("192.168.0.0/16",)),
    "iptables-masquerade-bit": ("31", 31),
    "iptables-localhost-nodeports": ("false", False),
    "iptables-sync-period": ("1m", 60.0),
    "iptables-min-sync-period": ("0", 0.0),
    "svcproxy-iptables-variant": ("legacy", IptablesVariant.LEGACY),
    "ipvs-sync-period": ("10s", 10.0),
    "ipvs-min-sync-period": ("0s", 0.0),
    "ipvs-scheduler": ("rr", "rr"),
    "ipvs-exclude-cidrs": ("10.1.0.0/16,10.2.0.0/16", ("10.1.0.0/16", "10.2.0.0/16")),
    "ipvs-strict-arp": ("true", True),
    "ipvs-tcp-timeout": ("15m", 900.0),
    "ipvs-tcpfin-timeout": ("1m30s", 90.0),
    "ipvs-udp-timeout": ("500ms", 0.5),
    "svcproxy-ipvs-graceful-termination-limit": ("2h", 7200.0),
    "conntrack-max-per-core": ("0", 0),
    "conntrack-min": ("1", 1),
    "conntrack-tcp-timeout-established": ("0s", 0.0),
    "conntrack-tcp-timeout-close-wait": ("10s", 10.0),
    "conntrack-tcp-be-liberal": ("true", True),
    "conntrack-udp-timeout": ("20s", 20.0),
    "conntrack-udp-timeout-stream": ("3m", 180.0),
    "healthz-bind-address": ("::", Bind("::", 10256)),
    "metrics-bind-address": ("", None),
    "svcproxy-admin-socket": ("/run/other.sock", "/run/other.sock"),
    "svcproxy-ui": ("false", False),
    "svcproxy-accounting": ("connections", AccountingLevel.CONNECTIONS),
    "svcproxy-refusal-log-group": ("100", 100),
    "svcproxy-service-metrics": (
        "default/web,kube-system/dns",
        (NamespacedName("default", "web"), NamespacedName("kube-system", "dns")),
    ),
    "bind-address-hard-fail": ("true", True),
    "profiling": ("true", True),
    "show-hidden-metrics-for-version": ("1.35", "1.35"),
    "v": ("4", 4),
    "vmodule": ("proxier=4,s*=5", (("proxier", 4), ("s*", 5))),
    "logging-format": ("json", LogFormat.JSON),
    "log-flush-frequency": ("1s", 1.0),
    "log-text-split-stream": ("true", True),
    "log-text-info-buffer-size": ("64Ki", "64Ki"),
    "log-json-split-stream": ("true", True),
    "log-json-info-buffer-size": ("1.5M", "1.5M"),
    "config": ("/c", "/c"),
    "write-config-to": ("/o", "/o"),
    "cleanup": ("true", True),
    "init-only": ("true", True),
    "oom-score-adj": ("-1000", -1000),
    "feature-gates": ("AllAlpha=true,AllBeta=false", (("AllAlpha", True), ("AllBeta", False))),
}


# nftables mode has another default for this flag
MORE = {"proxy-mode": {"nodeport-addresses": "0.0.0.0/0"}}


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.setting.fields])
def test_a_flag_sets_its_fields_and_no_others(name: str) -> None:
    text, value = OTHER_VALUES[name]
    fields = FLAGS[name].setting.fields
    before = from_settings(MORE.get(name, {})).config
    found = from_settings({name: text} | MORE.get(name, {})).config
    assert {
        field for field in Config.__slots__ if getattr(found, field) != getattr(before, field)
    } == set(fields)
    assert all(getattr(found, field) == value for field in fields)


def test_every_field_has_a_flag_unless_it_is_of_the_file_only() -> None:
    filled = {field for flag in FLAGS.values() for field in flag.setting.fields}
    assert set(Config.__slots__) - filled == {
        "kube_api_accept_content_types",
        "nftables_masquerade_bit",
    }


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("AllAlpha=true", True),
        ("AllowServiceExternalIPs=true", True),
        ("AllowServiceExternalIPs=false", False),
        (" AllowServiceExternalIPs = false,", False),
        ("AllowServiceExternalIPs=false,AllowServiceExternalIPs=true", True),
    ],
)
def test_the_gate_for_external_ips(text: str, allowed: bool) -> None:  # noqa: FBT001 - a parameter
    assert config(feature_gates=text).allows_external_ips is allowed


@pytest.mark.parametrize(
    ("mode", "present"),
    [
        (ProxyMode.IPTABLES, (2.0, 1.0, 3, True)),
        (ProxyMode.NFTABLES, (20.0, 10.0, 30, False)),
        # As in kube-proxy, IPVS mode masquerades with iptables rules and uses those settings
        (ProxyMode.IPVS, (200.0, 100.0, 3, True)),
    ],
)
def test_settings_of_the_current_mode(
    mode: ProxyMode, present: tuple[float, float, int, bool]
) -> None:
    chosen = Config(
        proxy_mode=mode,
        iptables_sync_period=2.0,
        iptables_min_sync_period=1.0,
        iptables_masquerade_bit=3,
        iptables_masquerade_all=True,
        nftables_sync_period=20.0,
        nftables_min_sync_period=10.0,
        nftables_masquerade_bit=30,
        ipvs_sync_period=200.0,
        ipvs_min_sync_period=100.0,
    )
    assert present == (
        chosen.sync_period,
        chosen.min_sync_period,
        chosen.masquerade_bit,
        chosen.masquerade_all,
    )


@pytest.mark.parametrize(
    ("settings", "bind"),
    [
        # The deprecated flag sets the port of an address without a port only
        ({"healthz-port": "1234"}, "0.0.0.0:10256"),
        ({"healthz-port": "1234", "healthz-bind-address": "10.0.0.1"}, "10.0.0.1:1234"),
        ({"healthz-port": "1234", "healthz-bind-address": "10.0.0.1:1"}, "10.0.0.1:1"),
        ({"healthz-port": "0", "healthz-bind-address": "10.0.0.1:1"}, "None"),
        ({"healthz-port": "0"}, "None"),
    ],
)
def test_deprecated_ports(settings: dict[str, str], bind: str) -> None:
    loaded = from_settings(settings)
    assert str(loaded.config.healthz_bind_address) == bind
    (warning,) = loaded.warnings
    assert warning.endswith("deprecated; use --healthz-bind-address")


def test_an_invalid_port_is_reported_once() -> None:
    assert problems(metrics_port="65536") == (
        "--metrics-port=65536: not a whole number from 0 to 65535",
    )
    assert len(problems(metrics_port="1", metrics_bind_address="x")) == 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ipvs_scheduler": "fastest"}, "ipvs-scheduler"),
        ({"ipvs_exclude_cidrs": "10.0.0.1"}, "ipvs-exclude-cidrs"),
        ({"cluster_cidr": "10.0.0.0", "detect_local_mode": "NodeCIDR"}, "cluster-cidr"),
        ({"pod_bridge_interface": "a b"}, "pod-bridge-interface"),
        ({"pod_interface_name_prefix": "a b"}, "pod-interface-name-prefix"),
    ],
)
def test_unused_settings_may_be_invalid(settings: dict[str, str], name: str) -> None:
    loaded = load(**settings)
    (warning,) = loaded.warnings
    assert warning.startswith(f"--{name}=")
    assert warning.endswith("so it is ignored)")
    (field,) = FLAGS[name].setting.fields
    assert getattr(loaded.config, field) == getattr(Config(), field)


def test_cluster_cidr_by_family() -> None:
    both = Config(cluster_cidrs=("fd00::/48", "10.0.0.0/8"))
    assert both.cluster_cidr(IPFamily.IPV4) == "10.0.0.0/8"
    assert both.cluster_cidr(IPFamily.IPV6) == "fd00::/48"
    assert Config().cluster_cidr(IPFamily.IPV4) is None


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        # The cluster counts as dual-stack only if a list has both families
        ({"cluster_cidr": "10.0.0.0/8"}, ""),
        ({"nodeport_addresses": "10.0.0.0/8"}, ""),
        ({"nodeport_addresses": "primary", "cluster_cidr": "10.0.0.0/8,fd00::/64"}, ""),
        (
            {"cluster_cidr": "10.0.0.0/8,fd00::/64", "nodeport_addresses": "10.0.0.0/8"},
            "--nodeport-addresses=10.0.0.0/8: node ports are served at all local IPv6 addresses",
        ),
        (
            {"cluster_cidr": "fd00::/64", "nodeport_addresses": "10.0.0.0/8,fd00::/64"},
            "--cluster-cidr=fd00::/64: IPv4 traffic from outside the cluster to cluster IPs",
        ),
        (
            {"cluster_cidr": "fd00::/64", "ipvs_exclude_cidrs": "10.0.0.0/8,fd00::/64"},
            "--cluster-cidr=fd00::/64: IPv4 traffic",
        ),
        (
            {
                "cluster_cidr": "fd00::/64",
                "nodeport_addresses": "10.0.0.0/8,fd00::/64",
                "detect_local_mode": "NodeCIDR",
            },
            "",
        ),
    ],
)
def test_ranges_without_a_family_of_the_cluster_are_a_warning(
    settings: dict[str, str], warning: str
) -> None:
    warnings = load(**settings).warnings
    assert len(warnings) == bool(warning)
    assert all(found.startswith(warning) for found in warnings)


def test_nftables_mode_defaults_to_node_ports_at_primary_addresses() -> None:
    assert config(proxy_mode="nftables").nodeport_primary
    asked = config(proxy_mode="nftables", nodeport_addresses="0.0.0.0/0,::/0")
    assert asked.nodeport_addresses == ("0.0.0.0/0", "::/0")
    assert not config().nodeport_addresses


@pytest.mark.parametrize("field", ["ipvs_tcp_timeout", "ipvs_tcp_fin_timeout", "ipvs_udp_timeout"])
def test_negative_timeouts_matter_in_ipvs_mode_only(field: str) -> None:
    values: dict[str, Any] = {field: -1.0}
    assert find_errors(Config(**values), str) == []
    (problem,) = find_errors(Config(proxy_mode=ProxyMode.IPVS, **values), str)
    assert problem.startswith(f"{field}=-1s: must not be negative")


def test_nodeport_addresses_by_family() -> None:
    ranges = Config(nodeport_addresses=("10.0.0.0/8", "fd00::/48", "192.168.0.0/16"))
    assert ranges.nodeport_cidrs(IPFamily.IPV4) == ("10.0.0.0/8", "192.168.0.0/16")
    assert ranges.nodeport_cidrs(IPFamily.IPV6) == ("fd00::/48",)
    assert not ranges.nodeport_primary
    primary = config(nodeport_addresses="primary")
    assert primary.nodeport_primary
    assert primary.nodeport_cidrs(IPFamily.IPV4) == ()


def test_all_problems_are_reported_with_one_line_each() -> None:
    found = problems(
        proxy_mode="userspace", iptables_sync_period="5", v="-1", master="http://x", manifests="/m"
    )
    assert found == (
        f"--proxy-mode=userspace: unknown; choose one of: {', '.join(m for m in ProxyMode if m in AVAILABLE_MODES)}",
        "--iptables-sync-period=5: not a duration; write for example 30s, 1m30s or 100ms",
        "-v=-1: not a whole number from 0 to 2147483647",
        "--master=http://x: contradicts --manifests; leave one of the two out",
    )
    assert str(ConfigError(*found)) == "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("proxy-mode", "userspace", "unknown; choose one of: iptables"),
        ("detect-local-mode", "BridgeInterface", "needs --pod-bridge-interface"),
        ("detect-local-mode", "clustercidr", "unknown; choose one of: ClusterCIDR, NodeCIDR"),
        ("svcproxy-iptables-variant", "both", "unknown; choose one of: auto, nft, legacy"),
        ("svcproxy-iptables-variant", "", "unknown; choose one of: auto, nft, legacy"),
        ("logging-format", "xml", "unknown; choose one of: text, json"),
        ("hostname-override", "  ", "only spaces"),
        ("cluster-cidr", "10.0.0.0/8,10.0.0.0/9", "more than one CIDR of a family"),
        ("cluster-cidr", "10.0.0.0/8,fd00::/8,fd00::/9", "more than one CIDR of a family"),
        ("nodeport-addresses", "primary,10.0.0.0/8", "'primary' cannot be combined"),
        ("nodeport-addresses", "10.0.0.1", "'10.0.0.1' is not a CIDR"),
        ("iptables-masquerade-bit", "32", "from 0 to 31"),
        ("iptables-masquerade-bit", "\u0663", "from 0 to 31"),
        ("iptables-masquerade-bit", "1" * 5000, "from 0 to 31"),
        ("iptables-sync-period", "0s", "must be longer than 0s"),
        ("iptables-sync-period", "-1s", "must be longer than 0s"),
        ("iptables-min-sync-period", "-1s", "must not be negative"),
        ("iptables-min-sync-period", "31s", "longer than --iptables-sync-period=30s"),
        ("config-sync-period", "0", "must be longer than 0s"),
        ("bind-address", "localhost", "not an IP address"),
        ("kube-api-qps", "many", "not a number"),
        ("conntrack-udp-timeout", "-1s", "must not be negative"),
        ("ipvs-strict-arp", "maybe", "write true or false"),
        ("log-flush-frequency", "0s", "must be longer than 0s"),
        ("log-text-info-buffer-size", "much", "not a quantity"),
        ("vmodule", "proxier", "not a list of PATTERN=NUMBER"),
        ("feature-gates", "A", "not a list of"),
        ("feature-gates", "AllAlpha=x", "write true or false"),
        ("show-hidden-metrics-for-version", "1.34", "only 1.35 is possible"),
    ],
)
def test_invalid_values(name: str, text: str, reason: str) -> None:
    (problem,) = problems(**{name: text})
    assert reason in problem
    assert name in problem


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("AllowServiceExternalIP=false", "did you mean AllowServiceExternalIPs?"),
        ("Qqq=true,AllBeta=true", "leave it out"),
    ],
)
def test_an_unknown_gate_is_a_warning_as_with_kube_proxy(text: str, remedy: str) -> None:
    (warning,) = load(feature_gates=text).warnings
    assert warning.startswith(f"--feature-gates={text.partition(',')[0]}: no feature gate")
    assert warning.endswith(remedy)


def test_a_sync_period_below_the_default_minimum_is_an_error() -> None:
    (problem,) = problems(iptables_sync_period="500ms")
    assert problem == (
        "--iptables-min-sync-period=1s: longer than --iptables-sync-period=500ms; "
        "lower the one or raise the other"
    )


def test_a_line_break_in_a_value_does_not_split_the_line() -> None:
    (problem,) = problems(proxy_mode="a\nb")
    assert "\n" not in problem
    assert r"'a\nb'" in problem
