"""IPVS mode, as the daemon sees it."""

from collections.abc import Collection, Iterator
from functools import partial

from svcproxy.backends.base import ExternalChange
from svcproxy.backends.core.node_settings import is_of_family, settings_for
from svcproxy.backends.ipvs.scheduling import ANNOTATIONS
from svcproxy.backends.mode_spec import (
    ActiveMode,
    Cleanup,
    CleanupStep,
    ModeSpec,
    OnExternalChange,
    ReadyBackends,
    Watcher,
    probed,
)
from svcproxy.config import Config
from svcproxy.model.names import IPFamily


def _make(config: Config) -> ReadyBackends:
    from svcproxy.backends.ipvs.address_watcher import AddressWatcher  # noqa: PLC0415
    from svcproxy.backends.ipvs.backend import IpvsBackend, IpvsOptions  # noqa: PLC0415
    from svcproxy.backends.ipvs.messages import Timeouts  # noqa: PLC0415
    from svcproxy.backends.xtables.commands import Iptables  # noqa: PLC0415
    from svcproxy.backends.xtables.variant import chosen_variant  # noqa: PLC0415

    variant = chosen_variant(config)
    timeouts = (config.ipvs_tcp_timeout, config.ipvs_tcp_fin_timeout, config.ipvs_udp_timeout)

    def make(family: IPFamily) -> IpvsBackend:
        excluded = (cidr for cidr in config.ipvs_exclude_cidrs if is_of_family(cidr, family))
        options = IpvsOptions(
            scheduler=config.ipvs_scheduler or "rr",
            excluded=tuple(excluded),
            strict_arp=config.ipvs_strict_arp,
            timeouts=Timeouts(*map(int, timeouts)),
            graceful_limit=config.ipvs_graceful_termination_limit,
            period=config.ipvs_sync_period,
        )
        return IpvsBackend(Iptables(variant, family), settings_for(config, family), options)

    def watch(on_external_change: OnExternalChange) -> Watcher:
        change = ExternalChange("address change", 0, certain=False, affects_inputs=True)
        return AddressWatcher(lambda: on_external_change(change))

    return ReadyBackends(probed(make), watch, variant)


def _cleanup_rules(
    _active: ActiveMode, _family: IPFamily, keep: Collection[str]
) -> Iterator[CleanupStep]:
    from svcproxy.backends.ipvs.cleanup import report_chains_in_use  # noqa: PLC0415

    if keep:
        yield partial(report_chains_in_use, keep)


def _cleanup_shared(active: ActiveMode) -> Iterator[CleanupStep]:
    from svcproxy.backends.ipvs.cleanup import remove_virtual_servers  # noqa: PLC0415

    if active.mode != MODE.name:
        yield partial(remove_virtual_servers, active.keep, now=active.mode is None)


def _owns_ipset(name: str) -> bool:
    from svcproxy.backends.ipvs.cleanup import IPSETS  # noqa: PLC0415

    return name in IPSETS


def _chains_in_use() -> tuple[str, ...]:
    from svcproxy.backends.ipvs.cleanup import chains_in_use  # noqa: PLC0415

    return chains_in_use()


MODE = ModeSpec(
    name="ipvs",
    make=_make,
    annotations=ANNOTATIONS,
    metrics=frozenset(("sync_proxy_rules_iptables_restore_failures",)),
    cleanup=Cleanup(_cleanup_rules, _cleanup_shared, _owns_ipset, _chains_in_use),
)
