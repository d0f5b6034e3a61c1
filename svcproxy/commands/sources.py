"""What commands work on: the daemon's state, or a folder of manifests."""

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

from svcproxy import cli
from svcproxy.admin.client import AdminClient
from svcproxy.commands.core.exit_codes import CommandError
from svcproxy.config import ConfigError
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.views import explainer_of, view_of_daemon, view_of_objects
from svcproxy.kube.source import SourceError
from svcproxy.model.objects import ApiObject
from svcproxy.modes import mode_spec

__all__ = [
    "add_source_arguments",
    "explainer_of",
    "load_view",
    "view_of_daemon",
    "view_of_manifests",
    "view_of_objects",
]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--manifests``, for commands that need no daemon."""
    parser.add_argument(
        "--manifests",
        metavar="DIR",
        help="work on the manifests of a folder instead of a daemon; the daemon's flags follow"
        " after --, for example -- --proxy-mode=nftables",
    )


def load_view(arguments: argparse.Namespace) -> NodeView:
    """Return the view that the arguments ask for: of the daemon, or of manifests.

    Raises:
        AdminError: no daemon runs, or it cannot be asked.
        CommandError: the manifests cannot be read.
    """
    if arguments.manifests is None:
        return view_of_daemon(AdminClient(arguments.socket))
    return view_of_manifests(Path(arguments.manifests), arguments.flags)


def view_of_manifests(folder: Path, flags: Sequence[str]) -> NodeView:
    """Return what a node would be meant to do, with the daemon's flags.

    Raises:
        CommandError: a flag is malformed, or the folder cannot be read.
    """
    try:
        config = cli.parse([*flags, f"--manifests={folder}"], {})
    except (cli.UsageError, ConfigError) as error:
        raise CommandError(str(error)) from error
    node = config.hostname_override or socket.gethostname().lower()
    mode = config.proxy_mode
    return view_of_objects(node, mode, config, _read_folder(folder, mode))


def _read_folder(folder: Path, mode: str) -> list[ApiObject]:
    from svcproxy.kube.manifests import read_folder  # noqa: PLC0415 - needs the YAML library

    try:
        objects, problems = read_folder(folder, mode_spec(mode).annotations)
    except SourceError as error:
        raise CommandError(str(error)) from error
    if problems and not objects:
        raise CommandError(str(problems[0]))
    return objects
