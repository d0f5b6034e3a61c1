"""The definition of one flag, and constructors for the usual kinds of flag."""

from collections.abc import Callable
from typing import Any, NamedTuple

from svcproxy.config.collect import Setting, Used, always
from svcproxy.config.parsing import parse_bool, parse_duration, parse_timeout


class Flag(NamedTuple):
    """One flag as ``--help`` shows it.

    ``placeholder`` stands for the value; it is empty for a boolean flag. ``setting.fields`` are the
    attributes of ``Config`` that the flag sets.
    """

    name: str
    placeholder: str
    help: str
    setting: Setting

    @property
    def option(self) -> str:
        """The name with leading dashes."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"


def flag(
    name: str,
    placeholder: str,
    text: str,
    *fields: str,
    parse: Callable[[str], Any],
    used: Used = always,
    warn: str = "",
) -> Flag:
    """Return a flag with a value; by default it sets the field of the same name."""
    return Flag(name, placeholder, text, Setting(fields or _field(name), parse, used, warn))


def boolean_flag(name: str, text: str, *fields: str, warn: str = "") -> Flag:
    """Return a boolean flag."""
    return flag(name, "", text, *fields, parse=parse_bool, warn=warn)


def duration_flag(name: str, text: str, *fields: str) -> Flag:
    """Return a flag with a duration."""
    return flag(name, "DURATION", text, *fields, parse=parse_duration)


def timeout_flag(name: str, text: str, *fields: str) -> Flag:
    """Return a flag with a duration that must not be negative."""
    return flag(name, "DURATION", text, *fields, parse=parse_timeout)


def ignored_flag(
    name: str, placeholder: str, text: str, *, parse: Callable[[str], Any], warn: str = ""
) -> Flag:
    """Return a flag that sets no field."""
    return Flag(name, placeholder, text, Setting((), parse, warn=warn))


def _field(name: str) -> tuple[str]:
    return (name.replace("-", "_"),)


def windows_flag(name: str, placeholder: str) -> Flag:
    """Return a flag that kube-proxy has on Windows only.

    All nodes of a cluster may share one command line.
    """
    parse = str if placeholder else parse_bool
    warn = "ignored: applies to Windows only"
    text = "accepted without effect: applies to Windows only"
    return Flag(name, placeholder, text, Setting((), parse, warn=warn))
