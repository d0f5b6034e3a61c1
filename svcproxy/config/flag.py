"""One flag: its name, how it reads, what it says in ``--help``; and short ways to write one.

Pure.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from svcproxy.config.collect import Setting, Used, always
from svcproxy.values import parse_bool, parse_duration, parse_timeout


class Flag(NamedTuple):
    """One flag as the help shows it.

    ``placeholder`` stands for the value and is empty for a boolean flag; ``setting.fields`` are
    the attributes of ``Config`` that the flag fills.
    """

    name: str
    placeholder: str
    help: str
    setting: Setting

    @property
    def spelled(self) -> str:
        """The name with its dashes."""
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
    """A flag with a value; without ``fields`` it fills the one that has its name."""
    return Flag(name, placeholder, text, Setting(fields or _field(name), parse, used, warn))


def switch(name: str, text: str, *fields: str, warn: str = "") -> Flag:
    """A flag that is true when it stands alone."""
    return flag(name, "", text, *fields, parse=parse_bool, warn=warn)


def period(name: str, text: str, *fields: str) -> Flag:
    """A flag with a duration."""
    return flag(name, "DURATION", text, *fields, parse=parse_duration)


def timeout(name: str, text: str, *fields: str) -> Flag:
    """A flag with a duration that is not negative."""
    return flag(name, "DURATION", text, *fields, parse=parse_timeout)


def inert(
    name: str, placeholder: str, text: str, *, parse: Callable[[str], Any], warn: str = ""
) -> Flag:
    """A flag that fills nothing."""
    return Flag(name, placeholder, text, Setting((), parse, warn=warn))


def _field(name: str) -> tuple[str]:
    return (name.replace("-", "_"),)


def windows(name: str, placeholder: str) -> Flag:
    """A flag that kube-proxy has on Windows only.

    A command line that is shared by all nodes of a cluster may hold it.
    """
    parse = str if placeholder else parse_bool
    warn = "means something on Windows only; ignored"
    text = "accepted; means something on Windows only"
    return Flag(name, placeholder, text, Setting((), parse, warn=warn))
