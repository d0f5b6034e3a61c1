"""Collects the status of the daemon for the admin socket."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from svcproxy import __version__
from svcproxy.admin.core.protocol import PROTOCOL, FamilyStatus, Status, WatchStatus
from svcproxy.config import Config, flags_of
from svcproxy.kube.source import WatchState
from svcproxy.model.names import Kind
from svcproxy.sync.loop import FamilyLoop


class About(NamedTuple):
    """What does not change while a daemon runs.

    Attributes:
        config: the effective settings.
        node: the name of the node.
        mode: the proxy mode.
        iptables_variant: the variant of iptables that holds rules of the mode; empty if none does.
    """

    config: Config
    node: str
    mode: str
    iptables_variant: str


class StatusSource:
    """Reads the status of the daemon; callable from any thread.

    Args:
        about: what does not change.
        loops: the loops of all families.
        watches: returns how far each watch is.
    """

    def __init__(
        self,
        about: About,
        loops: Sequence[FamilyLoop[Any, Any]],
        watches: Callable[[], Mapping[Kind, WatchState]],
    ) -> None:
        self._loops = loops
        self._watches = watches
        self._constant = Status(
            protocol=PROTOCOL,
            version=__version__,
            pid=os.getpid(),
            node=about.node,
            mode=about.mode,
            started=time.time(),
            now=0.0,
            flags=_without_password(flags_of(about.config)),
            iptables_variant=about.iptables_variant,
        )

    def __call__(self) -> Status:
        """Return the status."""
        return msgspec.structs.replace(
            self._constant,
            now=time.time(),
            families={loop.family: _family(loop) for loop in self._loops},
            watches={kind: WatchStatus(*state) for kind, state in self._watches().items()},
            not_ready_since=_not_ready(self._loops),
        )


def _without_password(flags: Mapping[str, str]) -> dict[str, str]:
    """Return the flags; the URL of the API server may have a user name and a password."""
    scheme, separator, rest = flags["master"].rpartition("://")
    return {**flags, "master": f"{scheme}{separator}{rest.rpartition('@')[2]}"}


def _family(loop: FamilyLoop[Any, Any]) -> FamilyStatus:
    progress = loop.progress
    held = {str(name): reason for name, reason in progress.held.items()}
    settings = loop.settings
    return FamilyStatus(
        synced=progress.synced,
        pending=progress.pending,
        failing=progress.failing,
        held=held,
        settings={} if settings is None else msgspec.to_builtins(settings),
        revision=progress.revision,
    )


def _not_ready(loops: Sequence[FamilyLoop[Any, Any]]) -> dict[str, dict[str, float]]:
    """Return since when endpoints are not ready; a Service may have some of both families."""
    found: dict[str, dict[str, float]] = {}
    for loop in loops:
        for service, times in loop.not_ready.by_service().items():
            found.setdefault(str(service), {}).update(times)
    return found
