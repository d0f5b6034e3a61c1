"""Builds the view of a node from what its daemon has, or from objects."""

from collections.abc import Iterable
from typing import Any

import msgspec

from svcproxy.admin.client import AdminClient, AdminError, OtherVersionError
from svcproxy.admin.core.protocol import Status
from svcproxy.config import Config, ConfigError, from_settings
from svcproxy.explain.core.view import FamilyView, NodeView, desired_state
from svcproxy.explain.mode_explainer import ModeExplainer, mode_explainer
from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import ApiObject


class UnknownModeError(AdminError):
    """The mode is not one of svcproxy's own, so that it cannot be explained."""


def view_of_daemon(client: AdminClient) -> NodeView:
    """Return what the daemon's node is meant to do.

    Raises:
        AdminError: the daemon does not answer, is of another version, or runs an unknown mode.
    """
    status = client.status()
    return view_of_status(status, [obj for kind in Kind for obj in client.objects(kind)])


def view_of_status(status: Status, objects: Iterable[ApiObject]) -> NodeView:
    """Return what a daemon's node is meant to do, from what the daemon has sent.

    Raises:
        AdminError: the daemon is of another version, or runs an unknown mode.
    """
    objects = list(objects)
    config = _config(status)
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
            raise _other_version(error) from error
        families[family] = FamilyView(family, state, changes, settings)
    return NodeView(status.node, status.mode, config, families, status)


def _config(status: Status) -> Config:
    try:
        return from_settings({name: text for name, text in status.flags.items() if text}).config
    except (ConfigError, KeyError) as error:
        raise _other_version(error) from error


def _other_version(reason: Exception) -> OtherVersionError:
    message = f"the daemon is of another version ({reason}): use its own svcproxy program"
    return OtherVersionError(message)


def view_of_objects(node: str, mode: str, config: Config, objects: Iterable[ApiObject]) -> NodeView:
    """Return what a node would be meant to do with some objects, on a kernel with all features.

    Raises:
        UnknownModeError: there is no explainer of the mode.
    """
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
        UnknownModeError: there is none.
    """
    explainer = mode_explainer(mode)
    if explainer is None:
        message = f"mode {mode!r} cannot be explained: it is not one of svcproxy's own"
        raise UnknownModeError(message)
    return explainer
