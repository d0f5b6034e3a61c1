"""What commands work on: the daemon's state, or a folder of manifests."""

import argparse
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from svcproxy import cli
from svcproxy.admin.client import AdminClient
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.config import Config, ConfigError, from_settings
from svcproxy.explain.core.view import FamilyView, NodeView, desired_state
from svcproxy.explain.mode_explainer import ModeExplainer, mode_explainer
from svcproxy.kube.source import SourceError
from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import ApiObject
from svcproxy.modes import mode_spec


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
        CommandError: no daemon runs, or the manifests cannot be read.
    """
    if arguments.manifests is None:
        return view_of_daemon(AdminClient(arguments.socket))
    return view_of_manifests(Path(arguments.manifests), arguments.flags)


def view_of_daemon(client: AdminClient) -> NodeView:
    """Return what the daemon's node is meant to do.

    Raises:
        CommandError: the daemon does not answer, or is of another version.
    """
    status = client.status()
    objects = [obj for kind in Kind for obj in client.objects(kind)]
    config = from_settings({name: text for name, text in status.flags.items() if text}).config
    explainer = explainer_of(status.mode)
    families = {}
    for family, about in status.families.items():
        state, changes = desired_state(family, status.node, config, objects)
        try:
            settings = (
                explainer.settings(about.settings)
                if about.settings
                else explainer.assumed_settings(config, family, state)
            )
        except msgspec.ValidationError as error:
            message = f"the daemon is of another version ({error}): use its own svcproxy program"
            raise CommandError(message, ExitCode.OTHER_VERSION) from error
        families[family] = FamilyView(family, state, changes, settings)
    return NodeView(status.node, status.mode, config, families, status)


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


def view_of_objects(node: str, mode: str, config: Config, objects: Iterable[ApiObject]) -> NodeView:
    """Return what a node would be meant to do with some objects, on a kernel with all features."""
    objects = list(objects)
    explainer = explainer_of(mode)
    families = {}
    for family in IPFamily:
        state, changes = desired_state(family, node, config, objects)
        settings = explainer.assumed_settings(config, family, state)
        families[family] = FamilyView(family, state, changes, settings)
    return NodeView(node, mode, config, families)


def explainer_of(mode: str) -> ModeExplainer[Any]:
    """Return the explainer of a mode.

    Raises:
        CommandError: there is none.
    """
    explainer = mode_explainer(mode)
    if explainer is None:
        raise CommandError(f"mode {mode!r} cannot be explained: it is not one of svcproxy's own")
    return explainer


def _read_folder(folder: Path, mode: str) -> list[ApiObject]:
    from svcproxy.kube.manifests import read_folder  # noqa: PLC0415 - needs the YAML library

    try:
        objects, problems = read_folder(folder, mode_spec(mode).annotations)
    except SourceError as error:
        raise CommandError(str(error)) from error
    if problems and not objects:
        raise CommandError(str(problems[0]))
    return objects
