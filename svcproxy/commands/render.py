"""``svcproxy render``: the rules that objects become in any mode, without touching a kernel."""

import argparse
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from svcproxy import cli
from svcproxy.admin.client import AdminClient
from svcproxy.backends.base import Desired
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.objects_file import read_objects
from svcproxy.commands.output import Output, escaped
from svcproxy.commands.sources import (
    add_source_arguments,
    explainer_of,
    view_of_daemon,
    view_of_objects,
)
from svcproxy.config import Config, ConfigError, from_settings
from svcproxy.explain.core.documents import Document, Part
from svcproxy.explain.core.rule_files import RuleFile, rule_files
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.kube.source import SourceError
from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import ApiObject, Node, Problem
from svcproxy.modes import mode_spec

EXAMPLES = """\
  svcproxy render                                      the rules that this node's daemon wants
  svcproxy render --mode all default/web               one Service, in every mode
  svcproxy render --manifests DIR --mode nftables --tool nft | nft -c -f -
  kubectl get services,endpointslices,nodes,servicecidrs -A -o json |
      svcproxy render --objects - --node node1 -- --cluster-cidr=10.244.0.0/16
"""

MODES = ("iptables", "nftables", "ipvs")
_TOOLS = ("nft", "iptables-restore", "ip6tables-restore", "ipset", "ipvsadm", "ip")


class RenderedFile(Part, frozen=True):
    """The rules of one family in one mode for one tool.

    Attributes:
        mode: the proxy mode.
        family: the IP family.
        tool: the program that reads the text.
        command: the command line that loads the text from stdin.
        text: the rules.
    """

    mode: str
    family: IPFamily
    tool: str
    command: str
    text: str


class Rendering(Document, frozen=True, kw_only=True):
    """The answer of ``svcproxy render``.

    Attributes:
        node: the name of the node.
        files: the rules, in the order in which to load them.
        problems: what is wrong with objects that were skipped.
    """

    node: str = ""
    files: tuple[RenderedFile, ...] = ()
    problems: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument(
        "service",
        nargs="?",
        metavar="NAMESPACE/NAME",
        help="render the rules as if this Service were the only one",
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--objects",
        metavar="FILE",
        help="work on the output of kubectl get services,endpointslices,nodes,servicecidrs -A"
        " -o json; - for stdin. The daemon's flags follow after --",
    )
    parser.add_argument(
        "--node", default="", metavar="NAME", help="the node, with --manifests or --objects"
    )
    parser.add_argument(
        "--mode",
        choices=(*MODES, "all"),
        help="the proxy mode; default: that of the daemon or of the flags",
    )
    parser.add_argument(
        "--family", choices=tuple(IPFamily), type=IPFamily, help="only this IP family"
    )
    parser.add_argument(
        "--tool", choices=_TOOLS, help="only what this program reads, without headers"
    )


class _Source(NamedTuple):
    """Where objects come from, for any mode.

    Attributes:
        mode: the mode that the source has by itself.
        view: returns the view in a mode.
        problems: what is wrong with objects that were skipped.
    """

    mode: str
    view: Callable[[str], NodeView]
    problems: Sequence[Problem] = ()


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    source = _source(arguments)
    wanted = arguments.mode or source.mode
    views = [source.view(mode) for mode in (MODES if wanted == "all" else (wanted,))]
    if arguments.service:
        _check_service(arguments.service, views)
    files = tuple(_files(views, arguments))
    problems = tuple(map(str, source.problems))
    for problem in problems:
        sys.stderr.write(f"svcproxy: warning: {escaped(problem)}\n")
    if output.as_json:
        output.document(Rendering(node=views[0].node, files=files, problems=problems))
    else:
        _print(output, views[0].node, files, headers=not arguments.tool)
    return ExitCode.OK


def _print(output: Output, node: str, files: Iterable[RenderedFile], *, headers: bool) -> None:
    for file in files:
        if headers:
            output.line(f"# {node}, {file.mode} mode, {file.family}: {file.command}")
        for line in file.text.splitlines():
            output.line(line)
        if headers:
            output.line()


def _files(views: Iterable[NodeView], arguments: argparse.Namespace) -> Iterator[RenderedFile]:
    for view in views:
        for family, about in view.families.items():
            if arguments.family in {None, family}:
                for file in _family_files(view.mode, about, arguments.service):
                    if arguments.tool in {None, file.tool}:
                        yield RenderedFile(view.mode, family, *file)


def _family_files(mode: str, about: FamilyView, service: str | None) -> list[RuleFile]:
    ports = {
        name: port
        for name, port in sorted(about.state.ports.items())
        if service is None or service == f"{name.namespace}/{name.name}"
    }
    desired = Desired(ports, about.settings, about.state.service_cidrs)
    return rule_files(explainer_of(mode).desired(desired), about.family)


def _check_service(service: str, views: Iterable[NodeView]) -> None:
    namespace, _, name = service.partition("/")
    if not namespace or not name:
        raise CommandError(f"{service!r} is no Service: write NAMESPACE/NAME")
    known = {
        (port.namespace, port.name)
        for view in views
        for about in view.families.values()
        for port in about.state.ports
    }
    if (namespace, name) not in known:
        raise CommandError(f"there is no Service {service} with a cluster IP", ExitCode.NOT_FOUND)


def _source(arguments: argparse.Namespace) -> _Source:
    if arguments.manifests and arguments.objects:
        raise CommandError("--manifests and --objects exclude each other: choose one")
    if not (arguments.manifests or arguments.objects):
        if arguments.node or arguments.flags:
            raise CommandError("--node and flags need --manifests or --objects")
        return _daemon(AdminClient(arguments.socket))
    annotations = frozenset().union(*(mode_spec(mode).annotations for mode in MODES))
    if arguments.objects:
        objects, problems = read_objects(arguments.objects, annotations)
    else:
        objects, problems = _read_folder(Path(arguments.manifests), annotations)
    if problems and not objects:
        raise CommandError(str(problems[0]))
    config = _config(arguments.flags)
    node = arguments.node or config.hostname_override or _only_node(objects)

    def view(mode: str) -> NodeView:
        return view_of_objects(
            node, mode, _config([*arguments.flags, f"--proxy-mode={mode}"]), objects
        )

    return _Source(config.proxy_mode, view, problems)


def _daemon(client: AdminClient) -> _Source:
    status = client.status()

    def view(mode: str) -> NodeView:
        if mode == status.mode:
            return view_of_daemon(client)
        flags = {name: text for name, text in status.flags.items() if text}
        config = from_settings(flags | {"proxy-mode": mode}).config
        objects = [obj for kind in Kind for obj in client.objects(kind)]
        return view_of_objects(status.node, mode, config, objects)

    return _Source(status.mode, view)


def _config(flags: Sequence[str]) -> Config:
    try:
        return cli.parse([*flags, "--manifests=."], {})
    except (cli.UsageError, ConfigError) as error:
        raise CommandError(str(error)) from error


def _only_node(objects: Iterable[ApiObject]) -> str:
    """Return the name of the only Node, or else of this machine.

    Raises:
        CommandError: there are several Nodes.
    """
    nodes = sorted(obj.name for obj in objects if isinstance(obj, Node))
    own = socket.gethostname().lower()
    if len(nodes) > 1 and own not in nodes:
        more = ", …" if len(nodes) > 3 else ""
        raise CommandError(f"rules differ by node: choose --node ({', '.join(nodes[:3])}{more})")
    return own if own in nodes or not nodes else nodes[0]


def _read_folder(
    folder: Path, annotations: frozenset[str]
) -> tuple[list[ApiObject], Sequence[Problem]]:
    from svcproxy.kube.manifests import read_folder  # noqa: PLC0415 - needs the YAML library

    try:
        return read_folder(folder, annotations)
    except SourceError as error:
        raise CommandError(str(error)) from error
