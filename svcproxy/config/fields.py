"""All fields of a ``KubeProxyConfiguration`` v1alpha1, and which flags they resemble.

Pure. Source: staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go of Kubernetes 1.36, with
those of ``clientConnection`` and ``logging`` from component-base.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from svcproxy.config import yaml_values as nodes
from svcproxy.config.collect import Setting, used_in
from svcproxy.config.flags import FLAGS
from svcproxy.config.model import ProxyMode
from svcproxy.config.yaml_values import Reader

Unset = Callable[[str], bool]


class Field(NamedTuple):
    """One field of the file.

    Attributes:
        path: its name, with dots: ``iptables.syncPeriod``.
        read: gives its value as the text of a flag.
        setting: what it means.
        unset: tells the texts that mean the same as a field that is left out. kube-proxy cannot
            tell the zero values of strings, numbers and durations from nothing.
    """

    path: str
    read: Reader
    setting: Setting
    unset: Unset


def empty(text: str) -> bool:
    """Nothing at all is given."""
    return not text


def no_duration(text: str) -> bool:
    """Whether this is a duration of zero, however it is written."""
    return re.fullmatch(r"[+-]?0|[+-]?([0.]+[a-z\u00b5\u03bc]+)+", text) is not None


def no_number(text: str) -> bool:
    """Whether this is the number zero."""
    return float(text) == 0


def never(_: str) -> bool:
    """Every value means something."""
    return False


def _like(path: str, read: Reader, flag: str, unset: Unset = empty) -> Field:
    """A field that means what a flag means."""
    return Field(path, read, FLAGS[flag].setting, unset)


def _period(path: str, flag: str, *fields: str, unset: Unset = no_duration) -> Field:
    setting = FLAGS[flag].setting
    return Field(path, nodes.string, setting._replace(fields=fields or setting.fields), unset)


def _timeout(path: str, flag: str) -> Field:
    return Field(path, nodes.string, FLAGS[flag].setting, never)


def _windows(path: str, read: Reader) -> Field:
    return Field(path, read, FLAGS["source-vip"].setting, lambda text: text in {"", "false"})


def _of_mode(path: str, read: Reader, flag: str, field: str, *modes: ProxyMode) -> Field:
    """A field that holds for one mode, where the flag holds for several."""
    setting = FLAGS[flag].setting._replace(fields=(field,))
    return Field(path, read, setting._replace(used=used_in(*modes)) if modes else setting, empty)


def _all() -> Iterator[Field]:
    string, boolean, integer = nodes.string, nodes.boolean, nodes.integer
    yield _like("featureGates", nodes.gates, "feature-gates")
    yield _like("clientConnection.kubeconfig", string, "kubeconfig")
    yield Field(
        "clientConnection.acceptContentTypes",
        string,
        Setting(("kube_api_accept_content_types",), str),
        empty,
    )
    yield _like("clientConnection.contentType", string, "kube-api-content-type")
    yield _like("clientConnection.qps", nodes.number, "kube-api-qps", no_number)
    yield _like("clientConnection.burst", integer, "kube-api-burst", no_number)
    yield _like("logging.format", string, "logging-format")
    yield _like("logging.flushFrequency", nodes.flush_frequency, "log-flush-frequency", no_duration)
    yield _like("logging.verbosity", integer, "v")
    yield _like("logging.vmodule", nodes.vmodule, "vmodule")
    for kind in ("text", "json"):
        path = f"logging.options.{kind}"
        yield _like(f"{path}.splitStream", boolean, f"log-{kind}-split-stream")
        yield _like(f"{path}.infoBufferSize", nodes.quantity, f"log-{kind}-info-buffer-size")
    yield _like("hostnameOverride", string, "hostname-override")
    yield _like("bindAddress", string, "bind-address")
    yield _like("healthzBindAddress", string, "healthz-bind-address")
    yield _like("metricsBindAddress", string, "metrics-bind-address")
    yield _like("bindAddressHardFail", boolean, "bind-address-hard-fail")
    yield _like("enableProfiling", boolean, "profiling")
    yield _like("showHiddenMetricsForVersion", string, "show-hidden-metrics-for-version")
    yield _like("mode", string, "proxy-mode")
    yield from _iptables_and_nftables()
    yield from _ipvs()
    yield from _windows_fields()
    yield _like("detectLocalMode", string, "detect-local-mode")
    yield _like("detectLocal.bridgeInterface", string, "pod-bridge-interface")
    yield _like("detectLocal.interfaceNamePrefix", string, "pod-interface-name-prefix")
    yield _like("clusterCIDR", string, "cluster-cidr")
    yield _like("nodePortAddresses", nodes.strings, "nodeport-addresses")
    yield _like("oomScoreAdj", integer, "oom-score-adj")
    yield from _conntrack()
    yield _period("configSyncPeriod", "config-sync-period")
    yield Field(
        "portRange", string, Setting((), str, warn="has no meaning since Kubernetes 1.26"), empty
    )


def _iptables_and_nftables() -> Iterator[Field]:
    integer, boolean = nodes.integer, nodes.boolean
    for mode, modes in (("iptables", ()), ("nftables", (ProxyMode.NFTABLES,))):
        bit, everything = f"{mode}_masquerade_bit", f"{mode}_masquerade_all"
        yield _of_mode(f"{mode}.masqueradeBit", integer, "iptables-masquerade-bit", bit, *modes)
        yield _of_mode(f"{mode}.masqueradeAll", boolean, "masquerade-all", everything)
        yield _period(f"{mode}.syncPeriod", "iptables-sync-period", f"{mode}_sync_period")
        yield _period(
            f"{mode}.minSyncPeriod", "iptables-min-sync-period", f"{mode}_min_sync_period"
        )
    yield _like("iptables.localhostNodePorts", boolean, "iptables-localhost-nodeports")


def _ipvs() -> Iterator[Field]:
    yield _period("ipvs.syncPeriod", "ipvs-sync-period")
    # The only one of its kind without a default: 0 means no pause between syncs
    yield _period("ipvs.minSyncPeriod", "ipvs-min-sync-period", unset=never)
    yield _like("ipvs.scheduler", nodes.string, "ipvs-scheduler")
    yield _like("ipvs.excludeCIDRs", nodes.strings, "ipvs-exclude-cidrs")
    yield _like("ipvs.strictARP", nodes.boolean, "ipvs-strict-arp")
    yield _timeout("ipvs.tcpTimeout", "ipvs-tcp-timeout")
    yield _timeout("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout")
    yield _timeout("ipvs.udpTimeout", "ipvs-udp-timeout")


def _conntrack() -> Iterator[Field]:
    yield _like("conntrack.maxPerCore", nodes.integer, "conntrack-max-per-core")
    yield _like("conntrack.min", nodes.integer, "conntrack-min")
    yield _timeout("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established")
    yield _timeout("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait")
    yield _like("conntrack.tcpBeLiberal", nodes.boolean, "conntrack-tcp-be-liberal")
    yield _timeout("conntrack.udpTimeout", "conntrack-udp-timeout")
    yield _timeout("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream")


def _windows_fields() -> Iterator[Field]:
    yield _windows("windowsRunAsService", nodes.boolean)
    for name in ("networkName", "sourceVip", "rootHnsEndpointName"):
        yield _windows(f"winkernel.{name}", nodes.string)
    for name in ("enableDSR", "forwardHealthCheckVip"):
        yield _windows(f"winkernel.{name}", nodes.boolean)


FIELDS: Mapping[str, Field] = {field.path: field for field in _all()}
