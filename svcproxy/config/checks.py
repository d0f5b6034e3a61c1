"""Validates combinations of settings.

The rules are kube-proxy's (source: pkg/proxy/apis/config/validation of Kubernetes 1.36), and rules
for svcproxy's own settings.
"""

from collections.abc import Callable, Iterator, Sequence

from svcproxy.config.collect import setting_message
from svcproxy.config.gates import unknown_gates
from svcproxy.config.model import AccountingLevel, Config, LocalMode, ProxyMode
from svcproxy.config.parsing import cidr_family, format_duration
from svcproxy.model.names import IPFamily

# Returns the operator's name for a field of ``Config``: a flag, or a path in the file
FieldNamer = Callable[[str], str]


def find_errors(config: Config, name_of: FieldNamer) -> list[str]:
    """Return an error for each invalid combination of settings.

    Settings that could not be parsed have their defaults here.
    """
    return [
        *_periods(config, name_of),
        *_timeouts(config, name_of),
        *_local_traffic(config, name_of),
        *_sources(config, name_of),
    ]


def find_warnings(config: Config, name_of: FieldNamer) -> list[str]:
    """Return a warning for each setting that is valid but unlikely to be intended.

    A cluster counts as dual-stack if a list of ranges has both families (source: checkBadConfig in
    cmd/kube-proxy/app/server.go of 1.36).
    """
    ports = () if config.nodeport_primary else config.nodeport_addresses
    lists = (config.cluster_cidrs, ports, config.ipvs_exclude_cidrs)
    dual = any(len({cidr_family(cidr) for cidr in ranges}) == len(IPFamily) for ranges in lists)
    found = [
        setting_message(name_of("feature_gates"), text, reason)
        for text, reason in unknown_gates(config.feature_gates)
    ]
    if config.detect_local_mode is LocalMode.CLUSTER_CIDR and config.cluster_cidrs:
        effect = "{} traffic from outside the cluster to cluster IPs is not masqueraded"
        found += [
            setting_message(
                name_of("cluster_cidrs"), ",".join(config.cluster_cidrs), effect.format(family)
            )
            for family in _missing_families(config.cluster_cidrs, dual=dual)
        ]
    if ports:
        effect = "node ports are served at all local {} addresses; add a CIDR of that family"
        found += [
            setting_message(name_of("nodeport_addresses"), ",".join(ports), effect.format(family))
            for family in _missing_families(ports, dual=dual)
        ]
    return found + _uncounted(config, name_of)


def _uncounted(config: Config, name_of: FieldNamer) -> list[str]:
    """Warn of settings that have no effect while nothing is counted."""
    if config.accounting is not AccountingLevel.NONE:
        return []
    reason = "no effect without --svcproxy-accounting"
    given = {
        "refusal_log_group": str(config.refusal_log_group or ""),
        "service_metrics": ",".join(map(str, config.service_metrics)),
    }
    return [setting_message(name_of(name), text, reason) for name, text in given.items() if text]


def _missing_families(ranges: Sequence[str], *, dual: bool) -> list[IPFamily]:
    present = {cidr_family(cidr) for cidr in ranges}
    return [family for family in IPFamily if dual and family not in present]


def _periods(config: Config, name_of: FieldNamer) -> Iterator[str]:
    mode = config.proxy_mode
    period_field, shortest_field = f"{mode}_sync_period", f"{mode}_min_sync_period"
    for field in (period_field, "config_sync_period", "log_flush_frequency"):
        if getattr(config, field) <= 0:
            text = format_duration(getattr(config, field))
            yield setting_message(name_of(field), text, "must be longer than 0s")
    period, shortest = config.sync_period, config.min_sync_period
    if shortest < 0:
        yield setting_message(
            name_of(shortest_field), format_duration(shortest), "must not be negative"
        )
    elif 0 < period < shortest:
        reason = (
            f"longer than {name_of(period_field)}={format_duration(period)}; "
            "lower the one or raise the other"
        )
        yield setting_message(name_of(shortest_field), format_duration(shortest), reason)


def _timeouts(config: Config, name_of: FieldNamer) -> Iterator[str]:
    if config.proxy_mode is ProxyMode.IPVS:
        for field in ("ipvs_tcp_timeout", "ipvs_tcp_fin_timeout", "ipvs_udp_timeout"):
            if getattr(config, field) < 0:
                text = format_duration(getattr(config, field))
                yield setting_message(
                    name_of(field), text, "must not be negative; 0s keeps the kernel's value"
                )


def _local_traffic(config: Config, name_of: FieldNamer) -> Iterator[str]:
    for mode, field, value in (
        (LocalMode.BRIDGE_INTERFACE, "bridge_interface", config.bridge_interface),
        (LocalMode.INTERFACE_NAME_PREFIX, "interface_name_prefix", config.interface_name_prefix),
    ):
        if config.detect_local_mode is mode and not value:
            yield setting_message(
                name_of("detect_local_mode"), mode, f"needs {name_of(field)} as well"
            )


def _sources(config: Config, name_of: FieldNamer) -> Iterator[str]:
    if config.manifests is None:
        return
    for field, value in (("kubeconfig", config.kubeconfig), ("master", config.master)):
        if value is not None:
            reason = f"contradicts {name_of('manifests')}; leave one of the two out"
            yield setting_message(name_of(field), value, reason)
