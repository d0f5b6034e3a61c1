"""IPVS mode, as the daemon sees it."""

from svcproxy.backends.base import ExternalChange
from svcproxy.backends.core.node_settings import is_of_family, settings_for
from svcproxy.backends.ipvs.core.settings import ANNOTATIONS
from svcproxy.backends.mode_spec import (
    Cleanup,
    ModeSpec,
    OnExternalChange,
    ReadyBackends,
    Watcher,
    probed,
)
from svcproxy.config import Config
from svcproxy.model.names import IPFamily


def _make(config: Config) -> ReadyBackends:
    from svcproxy.backends.ipvs.backend import IpvsBackend, IpvsOptions  # noqa: PLC0415
    from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE  # noqa: PLC0415
    from svcproxy.backends.ipvs.kernel import kernel_errors  # noqa: PLC0415
    from svcproxy.backends.xtables.commands import Iptables  # noqa: PLC0415
    from svcproxy.backends.xtables.variant import chosen_variant  # noqa: PLC0415
    from svcproxy.netlink.address_watcher import AddressWatcher  # noqa: PLC0415
    from svcproxy.netlink.core.ipvs import Timeouts  # noqa: PLC0415

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
        with kernel_errors():
            return AddressWatcher(DUMMY_INTERFACE, lambda: on_external_change(change))

    return ReadyBackends(probed(make), watch, variant)


def _cleanup() -> Cleanup:
    from svcproxy.backends.ipvs.cleanup import CLEANUP  # noqa: PLC0415

    return CLEANUP


MODE = ModeSpec(
    name="ipvs",
    make=_make,
    annotations=ANNOTATIONS,
    metrics=frozenset(("sync_proxy_rules_iptables_restore_failures",)),
    cleanup=_cleanup,
)
