"""The entry point: ``svcproxy COMMAND …`` runs a command, ``svcproxy --flags`` the daemon."""

import io
import sys
from collections.abc import Sequence

_INTERRUPTED = 130
"""The exit code after SIGINT, as in shells; ``ExitCode.INTERRUPTED`` before it can be imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command or the daemon; return the exit code.

    kube-proxy takes flags only, so a first argument without dashes is a command.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and not arguments[0].startswith("-"):
        try:
            return _run_command(arguments, own_process=argv is None)
        except KeyboardInterrupt:
            return _INTERRUPTED
    from svcproxy.cli import main as daemon  # noqa: PLC0415 - commands need no daemon

    return daemon(arguments, _commands() if {"-h", "--help"} & set(arguments) else "")


def _run_command(arguments: Sequence[str], *, own_process: bool) -> int:
    if own_process:
        from svcproxy.priority import yield_to_others  # noqa: PLC0415 - for commands only

        yield_to_others()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII locale must not end a command
                stream.reconfigure(errors="backslashreplace")
    from svcproxy.commands.run import run  # noqa: PLC0415 - the daemon needs no commands

    return run(arguments)


def _commands() -> str:
    """Return the commands for ``--help``."""
    from svcproxy.commands.registry import COMMANDS  # noqa: PLC0415 - the daemon needs no commands

    lines = [f"  {name:<12}{entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(("commands (svcproxy COMMAND --help):", *lines))
