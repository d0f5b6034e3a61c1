import pytest
import yaml

from svcproxy.config import Config, IptablesVariant
from svcproxy.config.export import as_document, as_yaml
from svcproxy.config.parsing import Bind
from svcproxy.config.precedence import from_file
from tests.unit.config.test_file import EVERYTHING, FILES, load


def back(config: Config) -> Config:
    return from_file({}, as_yaml(config).encode(), "conf").config


@pytest.mark.parametrize("text", ["", EVERYTHING, "bindAddress: '::'", "mode: nftables"])
def test_an_exported_configuration_reads_back(text: str) -> None:
    config = load(text).config
    assert back(config) == config


@pytest.mark.parametrize(
    "name",
    ["y", "N", "on", "1e3", "0o17", "017", "1_0", "null", "5", "-1", ".5", "<<", "a: b", "1:3"],
)
def test_strings_stay_strings(name: str) -> None:
    assert back(Config(hostname_override=name.lower())).hostname_override == name.lower()


def test_the_export_equals_kube_proxys() -> None:
    """One file is kube-proxy 1.36.2's output for the other with ``--write-config-to``."""
    ours = as_document(from_file({}, (FILES / "kubeadm.yaml").read_bytes(), "conf").config)
    theirs = yaml.safe_load((FILES / "kubeadm-completed.yaml").read_bytes())
    # Empty values that it omits or writes as null, and periods of other modes, which it drops
    assert differences(ours, theirs) == {
        ("featureGates", "{}", "None"),
        ("ipvs.excludeCIDRs", "[]", "None"),
        ("ipvs.syncPeriod", "30s", "0s"),
        ("logging.options.json.splitStream", "False", "None"),
        ("logging.options.text.splitStream", "False", "None"),
        ("logging.vmodule", "[]", "None"),
        ("nftables.minSyncPeriod", "1s", "0s"),
        ("nftables.syncPeriod", "30s", "0s"),
        ("nodePortAddresses", "[]", "None"),
        ("windowsRunAsService", "False", "None"),
    }


def differences(ours: object, theirs: object, path: str = "") -> set[tuple[str, str, str]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = set()
        for key in ours.keys() | theirs.keys():
            inner = f"{path}.{key}" if path else key
            found |= differences(ours.get(key), theirs.get(key), inner)
        return found
    return set() if ours == theirs else {(path, str(ours), str(theirs))}


def test_zero_durations_are_exported_as_a_nanosecond() -> None:
    """kube-proxy replaces 0 with its default of a second, but keeps a nanosecond."""
    config = Config(iptables_min_sync_period=0.0, ipvs_min_sync_period=0.0)
    document = as_document(config)
    assert document["iptables"]["minSyncPeriod"] == "1ns"
    assert document["ipvs"]["minSyncPeriod"] == "0s"


def test_svcproxys_own_settings_are_not_exported() -> None:
    ours = Config(
        manifests="/m",
        master="https://m",
        iptables_variant=IptablesVariant.NFT,
        ipvs_graceful_termination_limit=5.0,
        admin_socket="",
        ui=False,
        config="/c",
        write_config_to="/o",
        cleanup=True,
        init_only=True,
    )
    assert as_yaml(ours) == as_yaml(Config())


def test_bind_addresses() -> None:
    document = as_document(Config(metrics_bind_address=None, healthz_bind_address=Bind("::", 1)))
    assert (document["metricsBindAddress"], document["healthzBindAddress"]) == ("", "[::]:1")
