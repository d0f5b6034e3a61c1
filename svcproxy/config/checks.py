"""What is wrong with a ``Config`` that no single setting shows.

Pure. The rules are kube-proxy's (source: pkg/proxy/apis/config/validation of Kubernetes 1.36),
plus those of our own settings.
"""

from collections.abc import Callable, Iterator, Sequence

from svcproxy.config.collect import shown
from svcproxy.config.gates import unknown_gates
from svcproxy.config.model import Config, LocalMode, ProxyMode
from svcproxy.model.names import IPFamily
from svcproxy.values import cidr_family, format_duration

# Gives the name that the operator knows a field of ``Config`` by: a flag, or a path in the file
Spell = Callable[[str], str]


def contradictions(config: Config, spell: Spell) -> list[str]:
    """Find the settings that do not go together, a line for each.

    Settings that could not be parsed stand at their defaults here.
    """
    return [
        *_periods(config, spell),
        *_timeouts(config, spell),
        *_local_traffic(config, spell),
        *_sources(config, spell),
    ]


def doubts(config: Config, spell: Spell) -> list[str]:
    """Find the settings that work, but hardly do what was meant, a line for each.

    That a cluster has both families shows where a list of ranges has both (source: checkBadConfig
    in cmd/kube-proxy/app/server.go of 1.36).
    """
    ports = () if config.nodeport_primary else config.nodeport_addresses
    lists = (config.cluster_cidrs, ports, config.ipvs_exclude_cidrs)
    dual = any(len({cidr_family(cidr) for cidr in ranges}) == len(IPFamily) for ranges in lists)
    found = [
        shown(spell("feature_gates"), text, reason)
        for text, reason in unknown_gates(config.feature_gates)
    ]
    if config.detect_local_mode is LocalMode.CLUSTER_CIDR and config.cluster_cidrs:
        effect = "{} traffic from outside the cluster to cluster IPs is not masqueraded"
        found += [
            shown(spell("cluster_cidrs"), ",".join(config.cluster_cidrs), effect.format(family))
            for family in _missing(config.cluster_cidrs, dual=dual)
        ]
    if ports:
        effect = "node ports are open on all local {} addresses; give a range of them, too"
        found += [
            shown(spell("nodeport_addresses"), ",".join(ports), effect.format(family))
            for family in _missing(ports, dual=dual)
        ]
    return found


def _missing(ranges: Sequence[str], *, dual: bool) -> list[IPFamily]:
    present = {cidr_family(cidr) for cidr in ranges}
    return [family for family in IPFamily if dual and family not in present]


def _periods(config: Config, spell: Spell) -> Iterator[str]:
    mode = config.proxy_mode
    period_field, shortest_field = f"{mode}_sync_period", f"{mode}_min_sync_period"
    for field in (period_field, "config_sync_period", "log_flush_frequency"):
        if getattr(config, field) <= 0:
            text = format_duration(getattr(config, field))
            yield shown(spell(field), text, "must be longer than 0s")
    period, shortest = config.sync_period, config.min_sync_period
    if shortest < 0:
        yield shown(spell(shortest_field), format_duration(shortest), "must not be negative")
    elif 0 < period < shortest:
        reason = (
            f"longer than {spell(period_field)}={format_duration(period)}; "
            "lower the one or raise the other"
        )
        yield shown(spell(shortest_field), format_duration(shortest), reason)


def _timeouts(config: Config, spell: Spell) -> Iterator[str]:
    if config.proxy_mode is ProxyMode.IPVS:
        for field in ("ipvs_tcp_timeout", "ipvs_tcp_fin_timeout", "ipvs_udp_timeout"):
            if getattr(config, field) < 0:
                text = format_duration(getattr(config, field))
                yield shown(spell(field), text, "must not be negative; 0s: leave it as it is")


def _local_traffic(config: Config, spell: Spell) -> Iterator[str]:
    for mode, field, value in (
        (LocalMode.BRIDGE_INTERFACE, "bridge_interface", config.bridge_interface),
        (LocalMode.INTERFACE_NAME_PREFIX, "interface_name_prefix", config.interface_name_prefix),
    ):
        if config.detect_local_mode is mode and not value:
            yield shown(spell("detect_local_mode"), mode, f"needs {spell(field)} as well")


def _sources(config: Config, spell: Spell) -> Iterator[str]:
    if config.manifests is None:
        return
    for field, value in (("kubeconfig", config.kubeconfig), ("master", config.master)):
        if value is not None:
            reason = f"contradicts {spell('manifests')}; leave one of the two out"
            yield shown(spell(field), value, reason)
