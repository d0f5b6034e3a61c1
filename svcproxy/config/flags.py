"""Builds a ``Config`` from flags, as kube-proxy does.

Source: cmd/kube-proxy/app/options.go of Kubernetes 1.36.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from svcproxy.config.checks import FieldNamer, find_errors, find_warnings
from svcproxy.config.collect import Collected, Given, collect
from svcproxy.config.flag import Flag
from svcproxy.config.model import Config, ConfigError, Loaded, ProxyMode
from svcproxy.config.parsing import NODE_PORT_PRIMARY, Bind, format_duration, parse_bind
from svcproxy.config.table import GROUPS
from svcproxy.model.names import NamespacedName

FLAGS: Mapping[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}

# The values of these flags add up if repeated, as in kube-proxy; of all others the last one counts
LISTS = frozenset({"nodeport-addresses", "feature-gates", "ipvs-exclude-cidrs", "vmodule"})


def default_of(flag: Flag) -> str:
    """Return the default of a flag as command-line text; empty if there is none."""
    return _text(flag, Config())


def flags_of(config: Config) -> dict[str, str]:
    """Return all flags (names without dashes) with the text that results in ``config``."""
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


def _entry(entry: str | NamespacedName | tuple[str, bool | int]) -> str:
    """Return an entry of a list as text; those of feature-gates and vmodule are pairs."""
    if isinstance(entry, NamespacedName):
        return str(entry)
    return entry if isinstance(entry, str) else f"{entry[0]}={str(entry[1]).lower()}"


def from_settings(settings: Mapping[str, str]) -> Loaded:
    """Build a ``Config`` from flags.

    Args:
        settings: the text of each given flag, by its name without dashes.

    Raises:
        ConfigError: at least one setting is invalid; it holds every problem.
    """
    given = {
        name: Given(FLAGS[name].option, text, FLAGS[name].setting)
        for name, text in settings.items()
    }
    collected = collect((given | dict(_deprecated(settings))).values())
    return finish(collected, lambda field: flag_name_of(field, settings))


def finish(collected: Collected, name_of: FieldNamer) -> Loaded:
    """Build a ``Config`` from collected settings, and validate it as a whole.

    Raises:
        ConfigError: at least one setting is invalid; it holds every problem.
    """
    config = _with_defaults_of_mode(Config(**collected.fields))
    problems = collected.problems + find_errors(config, name_of)
    if problems:
        raise ConfigError(*problems)
    return Loaded(config, (*collected.warnings, *find_warnings(config, name_of)))


def _with_defaults_of_mode(config: Config) -> Config:
    """Apply the default of nftables mode: node ports are served at primary addresses only.

    Source: platformApplyDefaults in cmd/kube-proxy/app/server_linux.go of 1.36.
    """
    if config.proxy_mode is ProxyMode.NFTABLES and not config.nodeport_addresses:
        return replace(config, nodeport_addresses=(NODE_PORT_PRIMARY,))
    return config


def _deprecated(settings: Mapping[str, str]) -> Iterator[tuple[str, Given]]:
    """Yield the address flags that the two deprecated port flags change, as in kube-proxy.

    Port 0 disables the server. Any other port completes an address that has no port.
    """
    for name in ("healthz-bind-address", "metrics-bind-address"):
        port = settings.get(name.replace("bind-address", "port"), "")
        if port.isdecimal() and len(port) <= 5:
            setting = FLAGS[name].setting
            text = "" if int(port) == 0 else settings.get(name, default_of(FLAGS[name]))
            yield name, Given(f"--{name}", text, setting._replace(parse=_with_port(int(port))))


def _with_port(port: int) -> Callable[[str], Bind | None]:
    return lambda text: parse_bind(text, port)


def flag_name_of(field: str, settings: Mapping[str, str]) -> str:
    """Return the flag that set a field, or that could have set it."""
    flags = [flag for flag in FLAGS.values() if field in flag.setting.fields]
    return next((flag for flag in flags if flag.name in settings), flags[0]).option
