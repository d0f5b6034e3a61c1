"""nftables mode, as the daemon sees it."""

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
from svcproxy.model.names import REQUIRED_KINDS, Kind


def _make(config: Config) -> ReadyBackends:
    from svcproxy.backends.nf_tables_watcher import NftablesWatcher  # noqa: PLC0415
    from svcproxy.backends.nftables.backend import NftablesBackend  # noqa: PLC0415
    from svcproxy.backends.nftables.core.table_sets import AFFINITY  # noqa: PLC0415

    backends = probed(lambda family: NftablesBackend(family, settings_for(config, family)))

    def watch(on_external_change: OnExternalChange) -> Watcher:
        return NftablesWatcher(
            on_external_change,
            own_ports=[backend.port_id for backend in backends],
            families=[backend.family for backend in backends],
            # Packets add clients to it; a comparison does not look at them either.
            ignored_sets=[AFFINITY],
        )

    return ReadyBackends(backends, watch)


def _cleanup() -> Cleanup:
    from svcproxy.backends.nftables.cleanup import CLEANUP  # noqa: PLC0415

    return CLEANUP


MODE = ModeSpec(
    name="nftables",
    make=_make,
    # ServiceCIDRs say which cluster IPs are unassigned. As with kube-proxy, only nftables mode
    # drops packets to these.
    kinds=REQUIRED_KINDS | {Kind.SERVICE_CIDR},
    # The cost of a sync is proportional to its changes, so a longer pause saves nothing: it makes
    # batches larger, up to half of the cluster with the memory for it. In the other modes each
    # sync has a fixed cost, and iptables takes a lock that other programs need.
    longest_pause=0.05,
    metrics=frozenset(
        (
            "sync_proxy_rules_nftables_sync_failures",
            "sync_proxy_rules_nftables_cleanup_failures",
        )
    ),
    cleanup=_cleanup,
)
