"""Parses given settings, from flags or from fields of the file, into fields of a ``Config``.

All problems are collected, so that one run reports every mistake.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from svcproxy.config.model import Config, LocalMode, ProxyMode

# Whether a configuration uses a setting
Used = Callable[[Config], bool]


def always(_: Config) -> bool:
    """Every configuration uses the setting."""
    return True


class Setting(NamedTuple):
    """The fields that a setting sets, and how its value is parsed.

    Attributes:
        fields: the attributes of ``Config``; empty if the value is checked and then ignored.
        parse: returns the value, or raises ``ValueError`` with the reason and the remedy.
        used: whether a configuration uses the setting. If not, an invalid value is a warning, as
            kube-proxy does not check it then.
        warn: a warning for a value other than the default; empty for none.
    """

    fields: tuple[str, ...]
    parse: Callable[[str], Any]
    used: Used = always
    warn: str = ""


class Given(NamedTuple):
    """A setting as given by the operator; ``name`` is ``--v`` or ``logging.verbosity``."""

    name: str
    text: str
    setting: Setting


class Collected(NamedTuple):
    """The fields of a ``Config``, and one line for each error and each warning."""

    fields: dict[str, Any]
    problems: list[str]
    warnings: list[str]


def used_in(*modes: ProxyMode) -> Used:
    """Return a condition: the setting is used in these proxy modes only."""
    return lambda config: config.proxy_mode in modes


def used_for(mode: LocalMode) -> Used:
    """Return a condition: the setting is used with one ``--detect-local-mode`` only."""
    return lambda config: config.detect_local_mode is mode


def collect(given: Iterable[Given], base: Mapping[str, Any] | None = None) -> Collected:
    """Parse all given settings; a setting that cannot be parsed leaves its fields unset.

    If several settings set the same field, the last one counts. ``base`` holds the values of
    fields that are not given.
    """
    fields: dict[str, Any] = {**(base or {})}
    wrong, problems, warnings = [], [], []
    defaults = Config()
    for one in given:
        names = one.setting.fields
        try:
            value = one.setting.parse(one.text)
        except ValueError as error:
            wrong.append((one, setting_message(one.name, one.text, str(error))))
            continue
        fields |= dict.fromkeys(names, value)
        if one.setting.warn and not (names and value == getattr(defaults, names[0])):
            warnings.append(setting_message(one.name, one.text, one.setting.warn))
    config = Config(**fields)
    for one, line in wrong:
        if one.setting.used(config):
            problems.append(line)
        else:
            warnings.append(f"{line} (not used with the other settings, so it is ignored)")
    return Collected(fields, problems, warnings)


def setting_message(name: str, text: str, reason: str) -> str:
    """Return one line about a setting: its name, its value and the reason."""
    # repr escapes line breaks in the value
    return f"{name}={text if text.isprintable() and text else repr(text)}: {reason}"
