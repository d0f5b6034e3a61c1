"""Flags combined with a configuration file: which of them apply, as in kube-proxy."""

import pytest

from svcproxy.config import Loaded, LogFormat
from tests.unit.config.test_file import BARE, changed, load


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"hostname_override": "N2"}, {"hostname_override": "n2"}),
        ({"master": "https://m"}, {"master": "https://m"}),
        ({"v": "7"}, {"verbosity": 7}),
        ({"logging_format": "json"}, {"logging_format": LogFormat.JSON}),
        ({"log_flush_frequency": "1s"}, {"log_flush_frequency": 1.0}),
        ({"cleanup": "true"}, {"cleanup": True}),
        ({"init_only": "true"}, {"init_only": True}),
        ({"write_config_to": "/o"}, {"write_config_to": "/o"}),
        (
            {"svcproxy_ipvs_graceful_termination_limit": "1m"},
            {"ipvs_graceful_termination_limit": 60.0},
        ),
        ({"svcproxy_admin_socket": ""}, {"admin_socket": ""}),
        # As $(NODE_NAME) of an unset variable
        ({"hostname_override": ""}, {}),
        ({"machine_id_file": "/etc/machine-id"}, {}),
    ],
)
def test_flags_that_apply_with_a_file(settings: dict[str, str], change: dict[str, object]) -> None:
    file = "hostnameOverride: n1\nlogging: {verbosity: 1}\n"
    loaded = load(file, **settings)
    assert changed(loaded.config) == {"hostname_override": "n1", "verbosity": 1, **change}
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("proxy_mode", "nftables", "mode"),
        ("kubeconfig", "/k", "clientConnection.kubeconfig"),
        ("cluster_cidr", "10.0.0.0/8", "clusterCIDR"),
        ("feature_gates", "A=true", "featureGates"),
        ("iptables_sync_period", "1s", "iptables.syncPeriod"),
        ("oom_score_adj", "banana", "oomScoreAdj"),
        ("profiling", "true", "enableProfiling"),
        ("healthz_port", "0", "healthzBindAddress"),
        ("metrics_port", "0", "metricsBindAddress"),
    ],
)
def test_flags_that_a_file_overrides(name: str, text: str, path: str) -> None:
    loaded = load("", **{name: text})
    reason = f"ignored, because of --config; set {path} in conf instead"
    assert loaded == Loaded(BARE, (f"--{name.replace('_', '-')}={text}: {reason}",))


def test_manifests_override_the_kubeconfig_of_the_file() -> None:
    loaded = load("clientConnection: {kubeconfig: /k}", manifests="/m")
    assert changed(loaded.config) == {"manifests": "/m"}
    assert loaded.warnings == (
        "conf: clientConnection.kubeconfig=/k: ignored, because of --manifests",
    )
