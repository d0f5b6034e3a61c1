"""The configuration file: svcproxy handles each case as kube-proxy 1.36.2 did when tried."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import Config, ConfigError, Loaded, LocalMode, LogFormat, ProxyMode
from svcproxy.config.document import decode
from svcproxy.config.file_fields import FIELDS
from svcproxy.config.parsing import Bind
from svcproxy.config.precedence import from_file

FILES = Path(__file__).parent / "files"
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
# The file has pod CIDRs of both families, which avoids warnings
RANGES = "clusterCIDR: 10.244.0.0/16,fd00:10::/48\n"
BARE = Config(cluster_cidrs=("10.244.0.0/16", "fd00:10::/48"), ipvs_min_sync_period=0.0)


def load(text: str, **settings: str) -> Loaded:
    flags = {name.replace("_", "-"): value for name, value in settings.items()}
    return from_file(flags, (HEAD + RANGES + text).encode(), "conf")


def problems(text: str, **settings: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(text, **settings)
    return caught.value.problems


def changed(config: Config) -> dict[str, object]:
    """The fields that differ from those of a file without settings."""
    names = Config.__slots__
    return {
        name: getattr(config, name)
        for name in names
        if getattr(config, name) != getattr(BARE, name)
    }


def test_a_file_without_settings_has_the_defaults() -> None:
    assert load("") == Loaded(BARE)


def test_the_file_that_kubeadm_writes() -> None:
    loaded = from_file({}, (FILES / "kubeadm.yaml").read_bytes(), "config.conf")
    assert loaded == Loaded(
        Config(
            kubeconfig="/var/lib/kube-proxy/kubeconfig.conf",
            cluster_cidrs=("10.244.0.0/16",),
            ipvs_min_sync_period=0.0,
        )
    )


EVERYTHING = """
featureGates: {AllowServiceExternalIPs: false}
clientConnection:
  kubeconfig: /k
  acceptContentTypes: application/json
  contentType: application/yaml
  qps: 0.5
  burst: 7
logging:
  format: json
  flushFrequency: 2s
  verbosity: 3
hostnameOverride: " N1 "
bindAddress: 192.0.2.1
healthzBindAddress: 192.0.2.1
metricsBindAddress: "[::]:9999"
bindAddressHardFail: true
showHiddenMetricsForVersion: "1.35"
mode: nftables
iptables:
  masqueradeBit: 1
  masqueradeAll: true
  localhostNodePorts: false
  syncPeriod: 11s
  minSyncPeriod: 2s
ipvs:
  syncPeriod: 12s
  minSyncPeriod: 3s
  scheduler: mh
  excludeCIDRs: [10.1.0.0/16, "fd00:1::/64"]
  strictARP: true
  tcpTimeout: 4s
  tcpFinTimeout: 5s
  udpTimeout: 6s
nftables:
  masqueradeBit: 31
  masqueradeAll: true
  syncPeriod: 13s
  minSyncPeriod: 4s
detectLocalMode: NodeCIDR
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
nodePortAddresses: [192.0.2.0/24, "fd00:2::/64"]
oomScoreAdj: -1
conntrack:
  maxPerCore: 0
  min: 1
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 7s
  tcpBeLiberal: true
  udpTimeout: 8s
  udpStreamTimeout: 9s
configSyncPeriod: 1m
"""


def test_every_field_with_effect() -> None:
    loaded = load(EVERYTHING)
    assert changed(loaded.config) == {
        "feature_gates": (("AllowServiceExternalIPs", False),),
        "kubeconfig": "/k",
        "kube_api_accept_content_types": "application/json",
        "kube_api_content_type": "application/yaml",
        "kube_api_qps": 0.5,
        "kube_api_burst": 7,
        "logging_format": LogFormat.JSON,
        "log_flush_frequency": 2.0,
        "verbosity": 3,
        "hostname_override": "n1",
        "bind_address": "192.0.2.1",
        "healthz_bind_address": Bind("192.0.2.1", 10256),
        "metrics_bind_address": Bind("::", 9999),
        "bind_address_hard_fail": True,
        "show_hidden_metrics_for_version": "1.35",
        "proxy_mode": ProxyMode.NFTABLES,
        "iptables_masquerade_bit": 1,
        "iptables_masquerade_all": True,
        "iptables_localhost_nodeports": False,
        "iptables_sync_period": 11.0,
        "iptables_min_sync_period": 2.0,
        "ipvs_sync_period": 12.0,
        "ipvs_min_sync_period": 3.0,
        "ipvs_scheduler": "mh",
        "ipvs_exclude_cidrs": ("10.1.0.0/16", "fd00:1::/64"),
        "ipvs_strict_arp": True,
        "ipvs_tcp_timeout": 4.0,
        "ipvs_tcp_fin_timeout": 5.0,
        "ipvs_udp_timeout": 6.0,
        "nftables_masquerade_bit": 31,
        "nftables_masquerade_all": True,
        "nftables_sync_period": 13.0,
        "nftables_min_sync_period": 4.0,
        "detect_local_mode": LocalMode.NODE_CIDR,
        "bridge_interface": "cni0",
        "interface_name_prefix": "veth",
        "nodeport_addresses": ("192.0.2.0/24", "fd00:2::/64"),
        "oom_score_adj": -1,
        "conntrack_max_per_core": 0,
        "conntrack_min": 1,
        "conntrack_tcp_timeout_established": 0.0,
        "conntrack_tcp_timeout_close_wait": 7.0,
        "conntrack_tcp_be_liberal": True,
        "conntrack_udp_timeout": 8.0,
        "conntrack_udp_timeout_stream": 9.0,
        "config_sync_period": 60.0,
    }


def test_fields_without_effect_are_warnings() -> None:
    loaded = load(
        """
enableProfiling: true
portRange: 1-2
windowsRunAsService: true
winkernel: {networkName: net, sourceVip: v, enableDSR: true, rootHnsEndpointName: r,
            forwardHealthCheckVip: true}
logging: {vmodule: [{filePattern: proxier, verbosity: 4}]}
"""
    )
    assert changed(loaded.config) == {"profiling": True, "vmodule": (("proxier", 4),)}
    assert sorted(warning.partition("=")[0] for warning in loaded.warnings) == [
        "conf: logging.vmodule",
        "conf: portRange",
        "conf: windowsRunAsService",
        "conf: winkernel.enableDSR",
        "conf: winkernel.forwardHealthCheckVip",
        "conf: winkernel.networkName",
        "conf: winkernel.rootHnsEndpointName",
        "conf: winkernel.sourceVip",
    ]


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_null_keeps_the_default(path: str) -> None:
    head, *rest = reversed(path.split("."))
    text = f"{head}: null"
    for parent in rest:
        text = f"{parent}: {{{text}}}"
    expected = BARE if path != "clusterCIDR" else from_file({}, HEAD.encode(), "conf").config
    assert (
        from_file(
            {}, f"{HEAD}{RANGES if path != 'clusterCIDR' else ''}{text}".encode(), "conf"
        ).config
        == expected
    )


@pytest.mark.parametrize("text", ["iptables: null", "ipvs:", "logging: {options: ~}"])
def test_null_keeps_the_defaults_of_nested_fields(text: str) -> None:
    assert load(text) == Loaded(BARE)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("ipvs: {strictARP: yes}", "ipvs_strict_arp", True),
        ("ipvs: {strictARP: y}", "ipvs_strict_arp", True),
        ("ipvs: {strictARP: On}", "ipvs_strict_arp", True),
        ("iptables: {localhostNodePorts: N}", "iptables_localhost_nodeports", False),
        ("iptables: {masqueradeBit: 0o17}", "masquerade_bit", 15),
        ("iptables: {masqueradeBit: 017}", "masquerade_bit", 15),
        ("iptables: {masqueradeBit: 0b1}", "masquerade_bit", 1),
        ("iptables: {masqueradeBit: 1_0}", "masquerade_bit", 10),
        ("iptables: {masqueradeBit: +5}", "masquerade_bit", 5),
        ("iptables: {masqueradeBit: 1e1}", "masquerade_bit", 10),
        ("iptables: {masqueradeBit: 0x10}", "masquerade_bit", 16),
        ("iptables: {masqueradeBit: 1.0}", "masquerade_bit", 1),
        ("iptables: {masqueradeBit: !!int '5'}", "masquerade_bit", 5),
        ("hostnameOverride: !!str 5", "hostname_override", "5"),
        ("hostnameOverride: 1:30", "hostname_override", "1:30"),
        ("hostnameOverride: 2001-01-01", "hostname_override", "2001-01-01"),
        ("logging: {flushFrequency: 1500000000}", "log_flush_frequency", 1.5),
        ("logging: {options: {json: {infoBufferSize: 64}}}", "log_json_info_buffer_size", "64"),
        ("clientConnection: {qps: -1}", "kube_api_qps", -1.0),
        ("iptables: {syncPeriod: 0h0.0s}", "sync_period", 30.0),
        ("conntrack: {tcpEstablishedTimeout: 0s}", "conntrack_tcp_timeout_established", 0.0),
        ("x: &a {masqueradeBit: 3}\niptables: {<<: *a}", "masquerade_bit", 3),
        ("x: &a {masqueradeBit: 3}\niptables: {masqueradeBit: 4, <<: [*a]}", "masquerade_bit", 4),
    ],
)
def test_values_are_read_as_by_kube_proxy(text: str, field: str, value: object) -> None:
    assert getattr(load(text).config, field) == value


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("ipvs: {strictARP: 1}", "ipvs.strictARP=1", "must be true or false, but is a number"),
        ("ipvs: {strictARP: 'true'}", "ipvs.strictARP=true", "but is a string"),
        ("ipvs: {strictARP: t}", "ipvs.strictARP=t", "but is a string"),
        ("iptables: {syncPeriod: 5}", "iptables.syncPeriod=5", "must be a string, but is a number"),
        ("iptables: {syncPeriod: 5}", "iptables.syncPeriod=5", "put it in quotes"),
        ("iptables: {syncPeriod: ''}", "iptables.syncPeriod=''", "not a duration"),
        ("iptables: {masqueradeBit: '5'}", "iptables.masqueradeBit=5", "must be a number"),
        ("iptables: {masqueradeBit: 1.5}", "iptables.masqueradeBit=1.5", "a whole number"),
        ("iptables: {masqueradeBit: 1:1}", "iptables.masqueradeBit=1:1", "must be a number"),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit=32", "from 0 to 31"),
        ("iptables: 5", "iptables=5", "must be a map of fields"),
        ("iptables: [a]", "iptables=(a list)", "must be a map of fields"),
        ("clusterCIDR: 10", "clusterCIDR=10", "must be a string, but is a number"),
        ("clusterCIDR: y", "clusterCIDR=y", "must be a string, but is a boolean"),
        ("clusterCIDR: {}", "clusterCIDR=(a map)", "must be a string, but is a map"),
        ("oomScoreAdj: 3000000000", "oomScoreAdj=3000000000", "from -1000 to 1000"),
        ("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses=10.0.0.0/8", "a list of strings"),
        ("nodePortAddresses: [a, 5]", "nodePortAddresses=(a list)", "entry 1 must be a string"),
        ("nodePortAddresses: ['a,b']", "nodePortAddresses=(a list)", "entry 0 contains a comma"),
        ("nodePortAddresses: [x]", "nodePortAddresses=x", "'x' is not a CIDR"),
        ("featureGates: [A]", "featureGates=(a list)", "a map from names to true or false"),
        ("featureGates: {A: 'false'}", "featureGates=(a map)", "A: must be true or false"),
        ("logging: {format: xml}", "logging.format=xml", "choose one of: text, json"),
        ("logging: {verbosity: -1}", "logging.verbosity=-1", "from 0 to"),
        ("logging: {flushFrequency: -1s}", "logging.flushFrequency=-1s", "longer than 0s"),
        ("logging: {vmodule: {}}", "logging.vmodule=(a map)", "must be a list of maps"),
        ("logging: {vmodule: [a]}", "logging.vmodule=(a list)", "must be a list of maps"),
        ("logging: {vmodule: [{}]}", "logging.vmodule==0", "not a list of PATTERN=NUMBER"),
        ("mode: kernelspace", "mode=kernelspace", "choose one of: iptables"),
        ("configSyncPeriod: -1s", "configSyncPeriod=-1s", "must be longer than 0s"),
        (
            "iptables: {syncPeriod: 1ms}",
            "iptables.minSyncPeriod=1s",
            "conf: iptables.syncPeriod=1ms",
        ),
        ("detectLocalMode: BridgeInterface", "detectLocalMode=", "needs conf: detectLocal.bridge"),
    ],
)
def test_invalid_values_are_reported_with_the_path_of_the_field(
    text: str, path: str, reason: str
) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"conf: {path}")
    assert reason in problem


def test_all_problems_of_file_and_flags_are_reported_together() -> None:
    found = problems(
        "mode: x\nconntrack: {min: '5', maxPerCore: -1}\niptables: 5",
        v="much",
    )
    assert [line.partition("=")[0] for line in found] == [
        *("conf: conntrack.min", "conf: iptables", "conf: mode", "conf: conntrack.maxPerCore"),
        "-v",
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "iptables: {syncperiod: 5s}",
            "conf: iptables.syncperiod: unknown field, ignored; did you mean iptables.syncPeriod?",
        ),
        ("qqqqqqq: {a: [b]}", "conf: qqqqqqq: unknown field, ignored; leave it out"),
        ("metadata: {name: x}", "conf: metadata: unknown field, ignored; leave it out"),
        ("oomScoreAdj: 1\noomScoreAdj: 2", "conf: oomScoreAdj: given twice; the last one counts"),
        (r'"a\nb": 1', r"conf: 'a\nb': unknown field, ignored; leave it out"),
        ("ipvs: {scheduler: x, scheduler: rr}", "conf: ipvs.scheduler: given twice; the last one"),
        ("---\nmode: x", "conf: only its first YAML document is read"),
    ],
)
def test_mistakes_that_kube_proxy_tolerates_are_warnings(text: str, warning: str) -> None:
    (found,) = load(text).warnings
    assert found.startswith(warning)


def test_the_last_of_repeated_fields_counts() -> None:
    assert load("oomScoreAdj: 1\noomScoreAdj: 2").config.oom_score_adj == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no fields; it must begin with apiVersion: kubeproxy"),
        ("- a", "it has no fields"),
        ("a: [b", "not YAML: line 1: expected ',' or ']'"),
        ("a:\n\tb: c", "not YAML: line 2:"),
        ("a: *b", "not YAML: line 1: found undefined alias"),
        ("\x00", "not YAML: "),
        ("[" * 5000, "not YAML: "),
        ("kind: KubeProxyConfiguration", "apiVersion='': must be kubeproxy.config.k8s.io/v1alpha1"),
        (HEAD.replace("/v1alpha1", "/v1"), "must be kubeproxy.config.k8s.io/v1alpha1"),
        (HEAD.replace("KubeProxy", "Kubelet"), "kind=KubeletConfiguration: must be KubeProxy"),
        (HEAD.replace("KubeProxyConfiguration", "[a]"), "kind=(a list): must be KubeProxy"),
    ],
)
def test_files_that_are_not_configurations(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file({}, text.encode(), "conf")
    (problem,) = caught.value.problems
    assert problem.startswith("conf: ")
    assert reason in problem
    assert "\n" not in problem


def test_a_json_configuration() -> None:
    text = '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",\n\t"kind":\t"KubeProxyConfiguration", "clusterCIDR":"fd00::/64", "mode":"nftables"}'
    assert from_file({}, text.encode(), "conf").config.proxy_mode is ProxyMode.NFTABLES


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_configuration_or_an_error(data: bytes) -> None:
    document = decode(data, "conf")
    assert document.problems  # none of them holds apiVersion and kind
    assert all("\n" not in problem for problem in document.problems)


@pytest.mark.parametrize(
    ("text", "healthz", "metrics"),
    [
        ("bindAddress: '::'", Bind("::", 10256), Bind("::1", 10249)),
        (
            "bindAddress: fd00::1\nhealthzBindAddress: 127.0.0.1:1",
            Bind("127.0.0.1", 1),
            Bind("::1", 10249),
        ),
        ("bindAddress: 192.0.2.1", Bind("0.0.0.0", 10256), Bind("127.0.0.1", 10249)),
    ],
)
def test_bind_addresses_default_to_the_family_of_bindaddress(
    text: str, healthz: Bind, metrics: Bind
) -> None:
    config = load(text).config
    assert (config.healthz_bind_address, config.metrics_bind_address) == (healthz, metrics)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nftables: {masqueradeBit: 99}", "nftables.masqueradeBit"),
        ("ipvs: {scheduler: fastest}", "ipvs.scheduler"),
        ("ipvs: {excludeCIDRs: [x]}", "ipvs.excludeCIDRs"),
        ("detectLocal: {bridgeInterface: a b}", "detectLocal.bridgeInterface"),
    ],
)
def test_unused_settings_may_be_invalid(text: str, name: str) -> None:
    loaded = load(text)
    (warning,) = loaded.warnings
    assert warning.startswith(f"conf: {name}=")
    assert loaded.config == BARE


def test_every_field_is_covered() -> None:
    """All fields of kube-proxy: those of kubeadm's file, and those that it omits."""
    in_kubeadm = set(decode_paths((FILES / "kubeadm.yaml").read_text(encoding="utf-8")))
    assert set(FIELDS) - in_kubeadm == {
        *("featureGates", "logging.format", "logging.vmodule", "windowsRunAsService"),
        *("logging.options.text.splitStream", "logging.options.json.splitStream"),
    }
    assert in_kubeadm - set(FIELDS) == {"apiVersion", "kind"}


def decode_paths(text: str) -> list[str]:
    """The paths of all leaves of a YAML file that has a field on every line."""
    paths, parents = [], [""]
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.strip().partition(":")
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth + 1 :] = [f"{parents[depth]}{name}."]
        if value:
            paths.append(f"{parents[depth]}{name}")
    return paths
