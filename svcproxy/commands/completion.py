"""``svcproxy completion``: completion of commands, flags and Services in shells."""

import argparse
import re
from collections.abc import Iterator

from svcproxy.admin.client import AdminClient, AdminError
from svcproxy.commands.core import completion as scripts
from svcproxy.commands.core.completion import DAEMON, FILES, FOLDERS, SERVICES, Option, Words
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.output import Output
from svcproxy.commands.registry import COMMANDS
from svcproxy.config import GROUPS, LocalMode
from svcproxy.model.names import Kind
from svcproxy.model.objects import Service

EXAMPLES = """\
  svcproxy completion bash > /etc/bash_completion.d/svcproxy
  svcproxy completion zsh > "${fpath[1]}/_svcproxy"
  svcproxy completion fish > ~/.config/fish/completions/svcproxy.fish
  svcproxy completion services      the names that the scripts complete
"""

_SCRIPTS = {"bash": scripts.bash, "zsh": scripts.zsh, "fish": scripts.fish}
_KINDS = {"FILE": FILES, "PATH": FILES, "DIR": FOLDERS}
_NAME = re.compile(r"[a-z0-9.-]+/[a-z0-9.-]+")
_SECONDS = 2.0
_VALUES = {
    "proxy-mode": ("iptables", "nftables", "ipvs"),
    "detect-local-mode": tuple(LocalMode),
    "svcproxy-iptables-variant": ("auto", "nft", "legacy"),
}
"""The values of the daemon's flags that have few."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    # Not required by the parser, whose message about it would hide one about an unknown option.
    parser.add_argument("shell", nargs="?", choices=(*_SCRIPTS, SERVICES), help="the shell")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    if not arguments.shell:
        raise CommandError(f"name a shell: {', '.join(_SCRIPTS)}")
    if arguments.shell == SERVICES:
        for name in _services(arguments.socket):
            output.line(name)
        return ExitCode.OK
    for line in _SCRIPTS[arguments.shell]([*_commands(), _daemon()]).splitlines():
        output.line(line)
    return ExitCode.OK


def _services(path: str) -> list[str]:
    """Return the names of the daemon's Services; none without a daemon."""
    try:
        objects = list(AdminClient(path, _SECONDS).objects(Kind.SERVICE))
    except AdminError:
        return []
    names = (str(obj.name) for obj in objects if isinstance(obj, Service))
    return sorted(name for name in names if _NAME.fullmatch(name))


def _commands() -> Iterator[Words]:
    from svcproxy.commands.run import build_parser  # noqa: PLC0415 - imports the registry, too

    for name, entry in COMMANDS.items():
        actions = build_parser(name)._actions  # noqa: SLF001 - argparse has no other way
        arguments = [action for action in actions if not action.option_strings]
        metavars = " ".join(str(action.metavar) for action in arguments)
        yield Words(
            name,
            entry.summary,
            tuple(_option(action) for action in actions if action.option_strings),
            tuple(str(value) for action in arguments for value in action.choices or ()),
            SERVICES if re.search(r"NAMESPACE/NAME|\bTO\b", metavars) else "",
        )


def _option(action: argparse.Action) -> Option:
    return Option(
        tuple(action.option_strings),
        str(action.help or ""),
        takes_value=action.nargs != 0,
        values=tuple(map(str, action.choices or ())),
        kind=_KINDS.get(str(action.metavar), ""),
    )


def _daemon() -> Words:
    options = [
        Option(
            (flag.option,),
            flag.help,
            takes_value=bool(flag.placeholder),
            values=_VALUES.get(flag.name, ()),
            kind=_KINDS.get(flag.placeholder, ""),
        )
        for flags in GROUPS.values()
        for flag in flags
    ]
    options += [Option(("--help",), "show all flags"), Option(("--version",), "show the version")]
    return Words(DAEMON, "the daemon", tuple(options))
