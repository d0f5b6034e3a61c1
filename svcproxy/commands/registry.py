"""The registry of commands: a command is a module and one line here."""

import argparse
from importlib import import_module
from typing import NamedTuple, Protocol

from svcproxy.commands.output import Output


class Command(Protocol):
    """The module of a command."""

    EXAMPLES: str
    """Examples for ``--help``: an indented command line each, with its purpose."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the command to its parser."""

    @staticmethod
    def run(arguments: argparse.Namespace, output: Output) -> int:
        """Run the command.

        Returns:
            An ``ExitCode``.

        Raises:
            CommandError: the command failed.
        """


class Entry(NamedTuple):
    """A line of the registry: the module, and what the command does in one line."""

    module: str
    summary: str


COMMANDS = {
    "top": Entry("svcproxy.commands.top", "connections, refusals and drops of each Service"),
    "show": Entry("svcproxy.commands.show", "what each Service means on this node, and why"),
    "diff": Entry(
        "svcproxy.commands.diff", "how the kernel differs from the desired state; the last repairs"
    ),
    "status": Entry("svcproxy.commands.status", "whether this node's daemon is up to date"),
    "trace": Entry("svcproxy.commands.trace", "what this node does with a packet, step by step"),
    "bundle": Entry("svcproxy.commands.bundle", "everything that a bug report needs, in one file"),
    "render": Entry("svcproxy.commands.render", "the rules that objects become in any mode"),
    "completion": Entry(
        "svcproxy.commands.completion", "completion of commands, flags and Services in shells"
    ),
}


def load(name: str) -> Command:
    """Import the module of a command."""
    module: Command = import_module(COMMANDS[name].module)  # type: ignore[assignment]
    return module
