"""From given settings, be it flags or fields of a file, to the fields of a ``Config``.

Pure. Every problem is found in one go.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from svcproxy.config.model import Config, LocalMode, ProxyMode

# Tells in which configurations a setting means anything
Used = Callable[[Config], bool]


def always(_: Config) -> bool:
    """A setting that means something in every configuration."""
    return True


class Setting(NamedTuple):
    """What a setting fills, and how.

    Attributes:
        fields: the attributes of ``Config``; none if the value is checked and then ignored.
        parse: gives the value, or raises ``ValueError`` with the reason and the remedy.
        used: in a configuration that does not use it, a wrong value is no error, as kube-proxy
            looks at it no further then.
        warn: what to say when it is given and not at its default; empty for nothing.
    """

    fields: tuple[str, ...]
    parse: Callable[[str], Any]
    used: Used = always
    warn: str = ""


class Given(NamedTuple):
    """A setting as the operator wrote it: ``name`` is ``--v`` or ``logging.verbosity``."""

    name: str
    text: str
    setting: Setting


class Collected(NamedTuple):
    """Fields for a ``Config``, errors and warnings; a line for each."""

    fields: dict[str, Any]
    problems: list[str]
    warnings: list[str]


def used_in(*modes: ProxyMode) -> Used:
    """A setting that means something in these modes only."""
    return lambda config: config.proxy_mode in modes


def used_for(mode: LocalMode) -> Used:
    """A setting that means something with one ``--detect-local-mode`` only."""
    return lambda config: config.detect_local_mode is mode


def collect(given: Iterable[Given], base: Mapping[str, Any] | None = None) -> Collected:
    """Parse all that was given; what cannot be parsed leaves its fields out.

    Of several that fill a field the last one counts; ``base`` holds fields for want of any.
    """
    fields: dict[str, Any] = {**(base or {})}
    wrong, problems, warnings = [], [], []
    defaults = Config()
    for one in given:
        names = one.setting.fields
        try:
            value = one.setting.parse(one.text)
        except ValueError as error:
            wrong.append((one, shown(one.name, one.text, str(error))))
            continue
        fields |= dict.fromkeys(names, value)
        if one.setting.warn and not (names and value == getattr(defaults, names[0])):
            warnings.append(shown(one.name, one.text, one.setting.warn))
    config = Config(**fields)
    for one, line in wrong:
        if one.setting.used(config):
            problems.append(line)
        else:
            warnings.append(f"{line} (not used with the other settings, so it is ignored)")
    return Collected(fields, problems, warnings)


def shown(name: str, text: str, reason: str) -> str:
    """One line about a setting: name, value, and what is the matter."""
    # repr keeps a stray line break in a value from splitting the line
    return f"{name}={text if text.isprintable() and text else repr(text)}: {reason}"
