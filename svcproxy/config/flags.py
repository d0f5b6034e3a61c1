"""From flags to a ``Config``.

Pure. Flags are combined as kube-proxy does (source: cmd/kube-proxy/app/options.go of 1.36).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from svcproxy.config.checks import Spell, contradictions, doubts
from svcproxy.config.collect import Collected, Given, collect
from svcproxy.config.flag import Flag
from svcproxy.config.model import Config, ConfigError, Loaded, ProxyMode
from svcproxy.config.table import GROUPS
from svcproxy.values import NODE_PORT_PRIMARY, Bind, format_duration, parse_bind

FLAGS: Mapping[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}

# Repeated, these add up, as in kube-proxy; of all others the last one counts
LISTS = frozenset({"nodeport-addresses", "feature-gates", "ipvs-exclude-cidrs", "vmodule"})


def default_of(flag: Flag) -> str:
    """The default of a flag in the spelling of the command line; empty if there is none."""
    return _text(flag, Config())


def flags_of(config: Config) -> dict[str, str]:
    """All flags by name without dashes, each with the text that would make it what it is."""
    return {name: _text(flag, config) for name, flag in FLAGS.items()}


def _text(flag: Flag, config: Config) -> str:
    if not flag.setting.fields:
        return ""
    value = getattr(config, flag.setting.fields[0])
    if flag.placeholder == "DURATION":
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and not isinstance(value, Bind):
        return ",".join(_entry(entry) for entry in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _entry(entry: str | tuple[str, bool | int]) -> str:
    """An entry of a list; those of feature-gates and vmodule are pairs."""
    return entry if isinstance(entry, str) else f"{entry[0]}={str(entry[1]).lower()}"


def from_settings(settings: Mapping[str, str]) -> Loaded:
    """Make the ``Config`` that flags (name without dashes to text) describe.

    Raises:
        ConfigError: at least one setting is wrong; every problem is in it.
    """
    given = {
        name: Given(FLAGS[name].spelled, text, FLAGS[name].setting)
        for name, text in settings.items()
    }
    collected = collect((given | dict(_deprecated(settings))).values())
    return finish(collected, lambda field: spelled(field, settings))


def finish(collected: Collected, spell: Spell) -> Loaded:
    """Make a ``Config`` of what was collected, and look at it as a whole.

    Raises:
        ConfigError: at least one setting is wrong; every problem is in it.
    """
    config = _with_defaults_of_mode(Config(**collected.fields))
    problems = collected.problems + contradictions(config, spell)
    if problems:
        raise ConfigError(*problems)
    return Loaded(config, (*collected.warnings, *doubts(config, spell)))


def _with_defaults_of_mode(config: Config) -> Config:
    """In nftables mode node ports are on primary addresses only if nothing else is asked for.

    Source: platformApplyDefaults in cmd/kube-proxy/app/server_linux.go of 1.36.
    """
    if config.proxy_mode is ProxyMode.NFTABLES and not config.nodeport_addresses:
        return replace(config, nodeport_addresses=(NODE_PORT_PRIMARY,))
    return config


def _deprecated(settings: Mapping[str, str]) -> Iterator[tuple[str, Given]]:
    """Let the two old port flags change the address flags, as in kube-proxy.

    Port 0 disables the server; any other port counts for an address without a port only.
    """
    for name in ("healthz-bind-address", "metrics-bind-address"):
        port = settings.get(name.replace("bind-address", "port"), "")
        if port.isdecimal() and len(port) <= 5:
            setting = FLAGS[name].setting
            text = "" if int(port) == 0 else settings.get(name, default_of(FLAGS[name]))
            yield name, Given(f"--{name}", text, setting._replace(parse=_with_port(int(port))))


def _with_port(port: int) -> Callable[[str], Bind | None]:
    return lambda text: parse_bind(text, port)


def spelled(field: str, settings: Mapping[str, str]) -> str:
    """The flag that filled a field, or could have."""
    flags = [flag for flag in FLAGS.values() if field in flag.setting.fields]
    return next((flag for flag in flags if flag.name in settings), flags[0]).spelled
