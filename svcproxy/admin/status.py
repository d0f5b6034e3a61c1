"""Collects the status of the daemon for the admin socket."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from svcproxy import __version__
from svcproxy.admin.core.protocol import PROTOCOL, FamilyStatus, Status
from svcproxy.config import Config, flags_of
from svcproxy.sync.loop import FamilyLoop


class StatusSource:
    """Reads the status of the daemon; callable from any thread.

    Args:
        config: the effective settings.
        loops: the loops of all families.
        node: the name of the node.
        mode: the proxy mode.
        iptables_variant: the variant of iptables that holds rules of the mode; empty if none does.
    """

    def __init__(
        self,
        config: Config,
        loops: Sequence[FamilyLoop[Any, Any]],
        *,
        node: str,
        mode: str,
        iptables_variant: str,
    ) -> None:
        self._loops = loops
        self._constant = Status(
            protocol=PROTOCOL,
            version=__version__,
            pid=os.getpid(),
            node=node,
            mode=mode,
            started=time.time(),
            now=0.0,
            flags=flags_of(config),
            iptables_variant=iptables_variant,
        )

    def __call__(self) -> Status:
        """Return the status."""
        return msgspec.structs.replace(
            self._constant,
            now=time.time(),
            families={loop.family: _family(loop) for loop in self._loops},
        )


def _family(loop: FamilyLoop[Any, Any]) -> FamilyStatus:
    progress = loop.progress
    held: Mapping[str, str] = {str(name): reason for name, reason in progress.held.items()}
    return FamilyStatus(
        synced=progress.synced,
        pending=progress.pending,
        failing=progress.failing,
        held=held,
    )
