"""All fields of a ``KubeProxyConfiguration`` v1alpha1, and the corresponding flags.

Source: staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go of Kubernetes 1.36; those of
``clientConnection`` and ``logging`` are from component-base.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from svcproxy.config import yaml_values
from svcproxy.config.collect import Setting, used_in
from svcproxy.config.flags import FLAGS
from svcproxy.config.model import ProxyMode
from svcproxy.config.yaml_values import Reader

Unset = Callable[[str], bool]


class Field(NamedTuple):
    """One field of the file.

    Attributes:
        path: its path, such as ``iptables.syncPeriod``.
        read: converts its YAML node to the text of a flag.
        setting: the setting that it sets.
        unset: whether a text counts as an absent field: kube-proxy cannot distinguish the zero
            values of strings, numbers and durations from absent fields.
    """

    path: str
    read: Reader
    setting: Setting
    unset: Unset


def is_empty(text: str) -> bool:
    """Whether a text is empty."""
    return not text


def is_zero_duration(text: str) -> bool:
    """Whether a text is a duration of zero, in any spelling."""
    return re.fullmatch(r"[+-]?0|[+-]?([0.]+[a-z\u00b5\u03bc]+)+", text) is not None


def is_zero(text: str) -> bool:
    """Whether a text is the number zero."""
    return float(text) == 0


def never(_: str) -> bool:
    """No text counts as an absent field."""
    return False


def _same_as_flag(path: str, read: Reader, flag: str, unset: Unset = is_empty) -> Field:
    """Return a field that has the same meaning as a flag."""
    return Field(path, read, FLAGS[flag].setting, unset)


def _period(path: str, flag: str, *fields: str, unset: Unset = is_zero_duration) -> Field:
    setting = FLAGS[flag].setting
    return Field(path, yaml_values.string, setting._replace(fields=fields or setting.fields), unset)


def _timeout(path: str, flag: str) -> Field:
    return Field(path, yaml_values.string, FLAGS[flag].setting, never)


def _windows(path: str, read: Reader) -> Field:
    return Field(path, read, FLAGS["source-vip"].setting, lambda text: text in {"", "false"})


def _of_mode(path: str, read: Reader, flag: str, field: str, *modes: ProxyMode) -> Field:
    """Return a field that applies to one mode only, while the flag applies to several."""
    setting = FLAGS[flag].setting._replace(fields=(field,))
    return Field(path, read, setting._replace(used=used_in(*modes)) if modes else setting, is_empty)


def _all() -> Iterator[Field]:
    string, boolean, integer = yaml_values.string, yaml_values.boolean, yaml_values.integer
    yield _same_as_flag("featureGates", yaml_values.gates, "feature-gates")
    yield _same_as_flag("clientConnection.kubeconfig", string, "kubeconfig")
    yield Field(
        "clientConnection.acceptContentTypes",
        string,
        Setting(("kube_api_accept_content_types",), str),
        is_empty,
    )
    yield _same_as_flag("clientConnection.contentType", string, "kube-api-content-type")
    yield _same_as_flag("clientConnection.qps", yaml_values.number, "kube-api-qps", is_zero)
    yield _same_as_flag("clientConnection.burst", integer, "kube-api-burst", is_zero)
    yield _same_as_flag("logging.format", string, "logging-format")
    yield _same_as_flag(
        "logging.flushFrequency",
        yaml_values.flush_frequency,
        "log-flush-frequency",
        is_zero_duration,
    )
    yield _same_as_flag("logging.verbosity", integer, "v")
    yield _same_as_flag("logging.vmodule", yaml_values.vmodule, "vmodule")
    for kind in ("text", "json"):
        path = f"logging.options.{kind}"
        yield _same_as_flag(f"{path}.splitStream", boolean, f"log-{kind}-split-stream")
        yield _same_as_flag(
            f"{path}.infoBufferSize", yaml_values.quantity, f"log-{kind}-info-buffer-size"
        )
    yield _same_as_flag("hostnameOverride", string, "hostname-override")
    yield _same_as_flag("bindAddress", string, "bind-address")
    yield _same_as_flag("healthzBindAddress", string, "healthz-bind-address")
    yield _same_as_flag("metricsBindAddress", string, "metrics-bind-address")
    yield _same_as_flag("bindAddressHardFail", boolean, "bind-address-hard-fail")
    yield _same_as_flag("enableProfiling", boolean, "profiling")
    yield _same_as_flag("showHiddenMetricsForVersion", string, "show-hidden-metrics-for-version")
    yield _same_as_flag("mode", string, "proxy-mode")
    yield from _iptables_and_nftables()
    yield from _ipvs()
    yield from _windows_fields()
    yield _same_as_flag("detectLocalMode", string, "detect-local-mode")
    yield _same_as_flag("detectLocal.bridgeInterface", string, "pod-bridge-interface")
    yield _same_as_flag("detectLocal.interfaceNamePrefix", string, "pod-interface-name-prefix")
    yield _same_as_flag("clusterCIDR", string, "cluster-cidr")
    yield _same_as_flag("nodePortAddresses", yaml_values.strings, "nodeport-addresses")
    yield _same_as_flag("oomScoreAdj", integer, "oom-score-adj")
    yield from _conntrack()
    yield _period("configSyncPeriod", "config-sync-period")
    yield Field(
        "portRange", string, Setting((), str, warn="has no meaning since Kubernetes 1.26"), is_empty
    )


def _iptables_and_nftables() -> Iterator[Field]:
    integer, boolean = yaml_values.integer, yaml_values.boolean
    for mode, modes in (("iptables", ()), ("nftables", (ProxyMode.NFTABLES,))):
        bit, everything = f"{mode}_masquerade_bit", f"{mode}_masquerade_all"
        yield _of_mode(f"{mode}.masqueradeBit", integer, "iptables-masquerade-bit", bit, *modes)
        yield _of_mode(f"{mode}.masqueradeAll", boolean, "masquerade-all", everything)
        yield _period(f"{mode}.syncPeriod", "iptables-sync-period", f"{mode}_sync_period")
        yield _period(
            f"{mode}.minSyncPeriod", "iptables-min-sync-period", f"{mode}_min_sync_period"
        )
    yield _same_as_flag("iptables.localhostNodePorts", boolean, "iptables-localhost-nodeports")


def _ipvs() -> Iterator[Field]:
    yield _period("ipvs.syncPeriod", "ipvs-sync-period")
    # This field has no default: 0 means no pause between syncs.
    yield _period("ipvs.minSyncPeriod", "ipvs-min-sync-period", unset=never)
    yield _same_as_flag("ipvs.scheduler", yaml_values.string, "ipvs-scheduler")
    yield _same_as_flag("ipvs.excludeCIDRs", yaml_values.strings, "ipvs-exclude-cidrs")
    yield _same_as_flag("ipvs.strictARP", yaml_values.boolean, "ipvs-strict-arp")
    yield _timeout("ipvs.tcpTimeout", "ipvs-tcp-timeout")
    yield _timeout("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout")
    yield _timeout("ipvs.udpTimeout", "ipvs-udp-timeout")


def _conntrack() -> Iterator[Field]:
    yield _same_as_flag("conntrack.maxPerCore", yaml_values.integer, "conntrack-max-per-core")
    yield _same_as_flag("conntrack.min", yaml_values.integer, "conntrack-min")
    yield _timeout("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established")
    yield _timeout("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait")
    yield _same_as_flag("conntrack.tcpBeLiberal", yaml_values.boolean, "conntrack-tcp-be-liberal")
    yield _timeout("conntrack.udpTimeout", "conntrack-udp-timeout")
    yield _timeout("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream")


def _windows_fields() -> Iterator[Field]:
    yield _windows("windowsRunAsService", yaml_values.boolean)
    for name in ("networkName", "sourceVip", "rootHnsEndpointName"):
        yield _windows(f"winkernel.{name}", yaml_values.string)
    for name in ("enableDSR", "forwardHealthCheckVip"):
        yield _windows(f"winkernel.{name}", yaml_values.boolean)


FIELDS: Mapping[str, Field] = {field.path: field for field in _all()}
