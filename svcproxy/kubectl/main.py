"""The entry point of ``kubectl svcproxy``."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from svcproxy import __version__
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.output import Output, escaped
from svcproxy.kubectl import commands
from svcproxy.kubectl.cluster import ClusterAccess, ClusterOptions
from svcproxy.kubectl.commands import Question

_DESCRIPTION = """\
Asks svcproxy on every node, and says which nodes disagree. Runs the commands in the pods of the
DaemonSet by kubectl exec, so it needs the right to get pods and to create pods/exec there."""

_EXAMPLES = """\
examples:
  kubectl svcproxy diff                             the node that is behind, or whose kernel differs
  kubectl svcproxy show default/web                 a Service on all nodes
  kubectl svcproxy trace outside default/web:80 --node node1
  kubectl svcproxy top --context prod               connections of all nodes together
"""

_Run = Callable[[Question, Output], int]
_COMMANDS: dict[str, tuple[_Run, str]] = {
    "show": (commands.show, "Services on all nodes, and where nodes differ"),
    "trace": (commands.trace, "what happens to a packet on one node or on all"),
    "diff": (commands.diff, "which node is behind, and whose kernel differs"),
    "top": (commands.top, "connections, refusals and drops on all nodes together"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    common = _Parser(add_help=False)
    cluster = common.add_argument_group("cluster")
    cluster.add_argument("--context", metavar="NAME", help="the context, as for kubectl")
    cluster.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig, as for kubectl")
    cluster.add_argument(
        "-n", "--namespace", default="kube-system", help="the namespace of the DaemonSet"
    )
    cluster.add_argument("-l", "--selector", default="", help="the labels of the DaemonSet's pods")
    cluster.add_argument("--node", default="", metavar="NAME", help="only this node")
    cluster.add_argument(
        "--parallel", type=int, default=16, metavar="N", help="nodes to ask at a time (16)"
    )
    cluster.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="for each node (30)"
    )
    cluster.add_argument("-o", "--output", choices=("text", "json"), default="text")
    cluster.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    parser = _Parser(
        prog="kubectl svcproxy",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"svcproxy {__version__}")
    found = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: found.add_parser(name, help=text, description=text, parents=[common])
        for name, (_, text) in _COMMANDS.items()
    }
    parsers["show"].add_argument("service", nargs="?", metavar="NAMESPACE/NAME")
    parsers["trace"].add_argument("source", metavar="FROM")
    parsers["trace"].add_argument("to", metavar="TO:PORT[/PROTOCOL]")
    parsers["trace"].add_argument("--live", action="store_true", help="send a real probe as well")
    parsers["top"].add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kubectl svcproxy``; return its exit code, with the meaning of ``ExitCode``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII locale must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(_run(sys.argv[1:] if argv is None else argv))
    except CommandError as error:
        sys.stderr.write(f"kubectl svcproxy: {escaped(' '.join(str(error).split()))}\n")
        return int(error.code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def _run(argv: Sequence[str]) -> int:
    arguments = build_parser().parse_args(argv)
    access = ClusterAccess(_options(arguments))
    colour = {"always": True, "never": False}.get(arguments.color)
    output = Output(sys.stdout, as_json=arguments.output == "json", colour=colour)
    question = Question(access, access.pods(arguments.node), arguments)
    run, _ = _COMMANDS[arguments.command]
    code = run(question, output)
    output.flush()
    return code


def _options(arguments: argparse.Namespace) -> ClusterOptions:
    if not 1 <= arguments.parallel <= 256:
        raise CommandError("--parallel must be between 1 and 256")
    given = {name: getattr(arguments, name) for name in ("context", "kubeconfig")}
    kubectl = ["kubectl", *(f"--{name}={value}" for name, value in given.items() if value)]
    return ClusterOptions(
        kubectl, arguments.namespace, arguments.selector, arguments.parallel, arguments.timeout
    )


if __name__ == "__main__":
    sys.exit(main())
