"""Runs a command: parses its arguments, and turns errors into a line and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from svcproxy.admin.client import AdminError, NotPermittedError, OtherVersionError
from svcproxy.admin.core.protocol import SOCKET
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.output import Output, escaped
from svcproxy.commands.registry import COMMANDS, load


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help")


def build_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with the arguments that all commands have."""
    command, entry = load(name), COMMANDS[name]
    parser = _Parser(
        prog=f"svcproxy {name}",
        description=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    common = parser.add_argument_group("all commands")
    common.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="the format of the output"
    )
    common.add_argument(
        "--socket", default=SOCKET, metavar="PATH", help=f"the daemon's socket ({SOCKET})"
    )
    common.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="when to use colour"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` begins with; return its exit code."""
    try:
        return int(_run(argv))
    except CommandError as error:
        return _fail(str(error), error.code)
    except AdminError as error:
        return _fail(str(error), _code(error))
    except BrokenPipeError:
        # The reader, for example head, has enough. The interpreter must not flush stdout again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def _run(argv: Sequence[str]) -> int:
    name, *rest = argv
    if name not in COMMANDS:
        raise CommandError(_unknown(name))
    end = rest.index("--") if "--" in rest else len(rest)
    arguments = build_parser(name).parse_args(rest[:end])
    arguments.flags = rest[end + 1 :]
    colour = {"always": True, "never": False}.get(arguments.color)
    output = Output(sys.stdout, as_json=arguments.output == "json", colour=colour)
    code = load(name).run(arguments, output)
    output.flush()
    return code


def _fail(message: str, code: ExitCode) -> int:
    sys.stderr.write(f"svcproxy: {escaped(' '.join(message.split()))}\n")
    return int(code)


def _code(error: AdminError) -> ExitCode:
    match error:
        case NotPermittedError():
            return ExitCode.NOT_PERMITTED
        case OtherVersionError():
            return ExitCode.OTHER_VERSION
        case _:
            return ExitCode.NO_DAEMON


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command {name!r}: {hint} The daemon takes flags only, see svcproxy --help"
