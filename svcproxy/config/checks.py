"""What is wrong with a ``Config`` that no single setting shows.

Pure. The rules are kube-proxy's (source: pkg/proxy/apis/config/validation of Kubernetes 1.36),
plus those of our own settings.
"""

from collections.abc import Callable, Iterator

from svcproxy.config.collect import shown
from svcproxy.config.model import Config, LocalMode
from svcproxy.values import format_duration

# Gives the name that the operator knows a field of ``Config`` by: a flag, or a path in the file
Spell = Callable[[str], str]


def contradictions(config: Config, spell: Spell) -> list[str]:
    """Find the settings that do not go together, a line for each.

    Settings that could not be parsed stand at their defaults here.
    """
    return [
        *_periods(config, spell),
        *_local_traffic(config, spell),
        *_sources(config, spell),
    ]


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
