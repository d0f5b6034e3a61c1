"""iptables mode, as the daemon sees it."""

from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.mode_spec import (
    Cleanup,
    ModeSpec,
    OnExternalChange,
    ReadyBackends,
    Watcher,
    probed,
)
from svcproxy.config import Config


def _make(config: Config) -> ReadyBackends:
    from svcproxy.backends.iptables.backend import IptablesBackend  # noqa: PLC0415
    from svcproxy.backends.xtables.commands import Iptables, Variant  # noqa: PLC0415
    from svcproxy.backends.xtables.variant import chosen_variant  # noqa: PLC0415

    variant = chosen_variant(config)
    backends = probed(
        lambda family: IptablesBackend(Iptables(variant, family), settings_for(config, family))
    )
    if variant is Variant.LEGACY:
        return ReadyBackends(backends, iptables_variant=variant)

    from svcproxy.backends.iptables.core.drift import classify_change  # noqa: PLC0415
    from svcproxy.backends.nf_tables_watcher import NftablesWatcher  # noqa: PLC0415

    def watch(on_external_change: OnExternalChange) -> Watcher:
        families = [backend.family for backend in backends]
        watcher = NftablesWatcher(on_external_change, families=families, judge=classify_change)
        for backend in backends:
            backend.track_processes(watcher.own)
        return watcher

    return ReadyBackends(backends, watch, variant)


def _cleanup() -> Cleanup:
    from svcproxy.backends.iptables.cleanup import CLEANUP  # noqa: PLC0415

    return CLEANUP


MODE = ModeSpec(
    name="iptables",
    make=_make,
    metrics=frozenset(
        (
            "sync_proxy_rules_iptables_total",
            "sync_proxy_rules_iptables_last",
            "sync_proxy_rules_iptables_restore_failures",
            "sync_proxy_rules_iptables_partial_restore_failures",
            "iptables_ct_state_invalid_dropped_packets",
            "iptables_localhost_nodeports_accepted_packets",
        )
    ),
    cleanup=_cleanup,
)
