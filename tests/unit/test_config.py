import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import (
    SETTINGS,
    Config,
    ConfigError,
    IptablesVariant,
    LocalMode,
    LogFormat,
    ProxyMode,
    from_settings,
)
from svcproxy.model.names import IPFamily
from svcproxy.values import (
    Bind,
    format_duration,
    parse_bind,
    parse_bool,
    parse_cidrs,
    parse_duration,
)


def problems(**settings: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        from_settings({name.replace("_", "-"): text for name, text in settings.items()})
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("+0", 0.0),
        ("0s", 0.0),
        ("1s", 1.0),
        ("+1s", 1.0),
        ("-1s", -1.0),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("100ms", 0.1),
        ("1h0m0s", 3600.0),
        ("2h22m", 8520.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("7us", 7e-6),
        ("7\u00b5s", 7e-6),
        ("7\u03bcs", 7e-6),
        ("7ns", 7e-9),
        ("1s1s", 2.0),
        ("9223372036854775807ns", 9223372036.854775807),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "s", ".s", "1 s", " 1s", "1s ", "1d", "--1s", "+-1s", "1e3s", "\u0661s"),
        *("9223372036854775808ns", "300000000h", "-", "+", "1s-1s", "infinity", "nan"),
    ],
)
def test_what_go_does_not_read_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5\u00b5s"),
        (0.1, "100ms"),
        (0.0125, "12.5ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (60.0, "1m0s"),
        (90.0, "1m30s"),
        (3600.0, "1h0m0s"),
        (5400.25, "1h30m0.25s"),
        (-90.0, "-1m30s"),
        (900.0, "15m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_written_duration_reads_back(nanoseconds: int) -> None:
    seconds = nanoseconds / 10**9
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        parse_duration(text)
    except ValueError as error:
        assert "not a duration" in str(error)  # noqa: PT017 - most texts raise, some do not


@pytest.mark.parametrize(
    ("text", "bind", "shown"),
    [
        ("127.0.0.1:10249", Bind("127.0.0.1", 10249), "127.0.0.1:10249"),
        ("0.0.0.0:1", Bind("0.0.0.0", 1), "0.0.0.0:1"),
        ("[::]:10249", Bind("::", 10249), "[::]:10249"),
        ("[FD00:0::1]:65535", Bind("fd00::1", 65535), "[fd00::1]:65535"),
        ("10.0.0.1", Bind("10.0.0.1", 7), "10.0.0.1:7"),
        ("::1", Bind("::1", 7), "[::1]:7"),
    ],
)
def test_bind_addresses(text: str, bind: Bind, shown: str) -> None:
    assert parse_bind(text, 7) == bind
    assert str(bind) == shown
    assert parse_bind(shown, 7) == bind


def test_an_empty_bind_address_disables() -> None:
    assert parse_bind("", 7) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost:80", "'localhost' is not an IP address"),
        ("10.0.0.1:0", "from 1 to 65535"),
        ("10.0.0.1:65536", "from 1 to 65535"),
        ("10.0.0.1:http", "not an IP address and port"),
        (":10249", "'' is not an IP address"),
        ("[]:10249", "'' is not an IP address"),
        ("[::]", "not an IP address and port"),
        ("10249", "not an IP address and port"),
        ("10.0.0.256:1", "'10.0.0.256' is not an IP address"),
        ("10.0.0.1:\u0661", "not an IP address and port"),
    ],
)
def test_bad_bind_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_bind(text, 10249)


def test_cidrs_become_canonical() -> None:
    assert parse_cidrs("10.244.1.7/16, FD00:0:0::1/48") == ("10.244.0.0/16", "fd00::/48")
    assert parse_cidrs("") == ()
    assert parse_cidrs(" ") == ()


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/33", "x/8", "10.0.0.0/8,", ",", "/", "a b"])
def test_bad_cidrs(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR; write for example"):
        parse_cidrs(text)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["", "yes", "tRUE", "2"])
def test_neither_true_nor_false(text: str) -> None:
    with pytest.raises(ValueError, match="write true or false"):
        parse_bool(text)


def test_defaults_are_those_of_kube_proxy() -> None:
    assert from_settings({}) == Config() == Config(
        proxy_mode=ProxyMode.IPTABLES,
        detect_local_mode=LocalMode.CLUSTER_CIDR,
        masquerade_all=False,
        masquerade_bit=14,
        iptables_sync_period=30.0,
        iptables_min_sync_period=1.0,
        iptables_localhost_nodeports=True,
        metrics_bind_address=Bind("127.0.0.1", 10249),
        healthz_bind_address=Bind("0.0.0.0", 10256),
        config_sync_period=900.0,
        verbosity=0,
        logging_format=LogFormat.TEXT,
    )  # fmt: skip


def test_every_setting_reaches_its_field() -> None:
    assert from_settings(
        {
            "proxy-mode": "",
            "kubeconfig": "/etc/kubeconfig",
            "master": "https://10.0.0.1:6443",
            "hostname-override": " Node-1 ",
            "cluster-cidr": "10.244.0.0/16,fd00:244::/56",
            "detect-local-mode": "NodeCIDR",
            "masquerade-all": "true",
            "iptables-masquerade-bit": "31",
            "iptables-sync-period": "1m",
            "iptables-min-sync-period": "0",
            "iptables-localhost-nodeports": "false",
            "svcproxy-iptables-variant": "legacy",
            "nodeport-addresses": "192.168.0.0/16",
            "metrics-bind-address": "",
            "healthz-bind-address": "::",
            "bind-address-hard-fail": "true",
            "config-sync-period": "1h",
            "profiling": "false",
            "v": "4",
            "logging-format": "json",
            "feature-gates": "A=true,B=false",
        }
    ) == Config(
        kubeconfig="/etc/kubeconfig",
        master="https://10.0.0.1:6443",
        hostname_override="node-1",
        cluster_cidrs=("10.244.0.0/16", "fd00:244::/56"),
        detect_local_mode=LocalMode.NODE_CIDR,
        masquerade_all=True,
        masquerade_bit=31,
        iptables_sync_period=60.0,
        iptables_min_sync_period=0.0,
        iptables_localhost_nodeports=False,
        iptables_variant=IptablesVariant.LEGACY,
        nodeport_addresses=("192.168.0.0/16",),
        metrics_bind_address=None,
        healthz_bind_address=Bind("::", 10256),
        bind_address_hard_fail=True,
        config_sync_period=3600.0,
        verbosity=4,
        logging_format=LogFormat.JSON,
        feature_gates=(("A", True), ("B", False)),
    )
    assert from_settings({"manifests": "/m"}).manifests == "/m"


def test_every_field_has_a_setting() -> None:
    assert sorted(setting.field for setting in SETTINGS.values()) == sorted(Config.__slots__)


def test_cluster_cidr_by_family() -> None:
    both = Config(cluster_cidrs=("fd00::/48", "10.0.0.0/8"))
    assert both.cluster_cidr(IPFamily.IPV4) == "10.0.0.0/8"
    assert both.cluster_cidr(IPFamily.IPV6) == "fd00::/48"
    assert Config().cluster_cidr(IPFamily.IPV4) is None


def test_nodeport_addresses_by_family() -> None:
    ranges = Config(nodeport_addresses=("10.0.0.0/8", "fd00::/48", "192.168.0.0/16"))
    assert ranges.nodeport_cidrs(IPFamily.IPV4) == ("10.0.0.0/8", "192.168.0.0/16")
    assert ranges.nodeport_cidrs(IPFamily.IPV6) == ("fd00::/48",)
    assert not ranges.nodeport_primary
    primary = from_settings({"nodeport-addresses": "primary"})
    assert primary.nodeport_primary
    assert primary.nodeport_cidrs(IPFamily.IPV4) == ()


def test_all_problems_are_told_at_once_one_line_each() -> None:
    found = problems(
        proxy_mode="ipvs", iptables_sync_period="5", v="-1", master="http://x", manifests="/m"
    )
    assert found == (
        "--proxy-mode=ipvs: not available in this version; choose one of: iptables, nftables",
        "--iptables-sync-period=5: not a duration; write for example 30s, 1m30s or 100ms",
        "-v=-1: not a whole number from 0 to 2147483647",
        "--master=http://x: contradicts --manifests; leave one of the two out",
    )
    assert str(ConfigError(*found)) == "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("proxy-mode", "ipvs", "not available in this version"),
        ("proxy-mode", "userspace", "unknown; choose one of: iptables"),
        ("detect-local-mode", "BridgeInterface", "needs --pod-bridge-interface"),
        ("detect-local-mode", "clustercidr", "unknown; choose one of: ClusterCIDR, NodeCIDR"),
        ("svcproxy-iptables-variant", "both", "unknown; choose one of: auto, nft, legacy"),
        ("svcproxy-iptables-variant", "", "unknown; choose one of: auto, nft, legacy"),
        ("logging-format", "xml", "unknown; choose one of: text, json"),
        ("hostname-override", "  ", "only spaces"),
        ("cluster-cidr", "10.0.0.0/8,10.0.0.0/9", "more than one range of a family"),
        ("cluster-cidr", "10.0.0.0/8,fd00::/8,fd00::/9", "more than one range of a family"),
        ("nodeport-addresses", "primary,10.0.0.0/8", "'primary' must stand alone"),
        ("nodeport-addresses", "10.0.0.1", "'10.0.0.1' is not a CIDR"),
        ("iptables-masquerade-bit", "32", "from 0 to 31"),
        ("iptables-masquerade-bit", "\u0663", "from 0 to 31"),
        ("iptables-masquerade-bit", "1" * 5000, "from 0 to 31"),
        ("iptables-sync-period", "0s", "must be longer than 0s"),
        ("iptables-sync-period", "-1s", "must be longer than 0s"),
        ("iptables-min-sync-period", "-1s", "must not be negative"),
        ("iptables-min-sync-period", "31s", "longer than --iptables-sync-period=30s"),
        ("config-sync-period", "0", "must be longer than 0s"),
        ("profiling", "true", "not available in this version"),
        ("feature-gates", "A", "not a list of"),
        ("feature-gates", "A=x", "write true or false"),
    ],
)
def test_bad_values(name: str, text: str, reason: str) -> None:
    (problem,) = problems(**{name: text})
    assert reason in problem
    assert name in problem


def test_a_sync_period_below_the_default_shortest_one_is_told_too() -> None:
    (problem,) = problems(iptables_sync_period="500ms")
    assert problem == (
        "--iptables-min-sync-period=1s: longer than --iptables-sync-period=500ms; "
        "lower the one or raise the other"
    )


def test_a_line_break_in_a_value_does_not_split_the_line() -> None:
    (problem,) = problems(proxy_mode="a\nb")
    assert "\n" not in problem
    assert r"'a\nb'" in problem
