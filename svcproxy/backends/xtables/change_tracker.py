"""Have other processes changed the iptables tables since svcproxy read them?

A backend calls ``before_read`` before it reads the tables, and ``before_write`` and ``after_write``
around each change of its own. ``is_unchanged`` then says whether the tables certainly hold what was
read plus svcproxy's own changes.
"""

import contextlib
from typing import Protocol

from svcproxy.backends.own_generations import OwnGenerations, own_generations
from svcproxy.backends.xtables.table_sizes import table_sizes
from svcproxy.model.names import IPFamily
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.generation import generation, network_namespace


class ChangeTracker(Protocol):
    """Distinguishes svcproxy's own changes to the tables from those of other processes."""

    def before_read(self) -> None:
        """Record the state that is about to be read."""

    def before_write(self) -> None:
        """Stop trusting the recorded state if another process has changed the tables since."""

    def after_write(self, commits: int) -> None:
        """Record the state after svcproxy's own write.

        Args:
            commits: how many transactions svcproxy has committed since ``before_write``, at most.
        """

    def is_unchanged(self) -> bool:
        """Whether only svcproxy has changed the tables since ``before_read``."""


class GenerationTracker:
    """Tracks changes by the generation number of nf_tables, for the nft variant.

    Another process may commit between svcproxy's read and write. Therefore a generation is trusted
    only if it is the recorded one plus at most the number of svcproxy's own commits. Those of the
    accounting tables do not concern iptables' tables (``OwnGenerations``).
    """

    def __init__(self) -> None:
        self._recorded: int | None = None
        self._own: OwnGenerations | None = None

    def before_read(self) -> None:
        """Record the generation that is about to be read."""
        if self._own is None:
            with contextlib.suppress(NetlinkError):
                self._own = own_generations(network_namespace())
        self._recorded = generation()

    def before_write(self) -> None:
        """Stop trusting the recorded generation if another process has raised it."""
        now = generation()
        self._recorded = now if self._others(now) == 0 else None

    def after_write(self, commits: int) -> None:
        """Record the generation after at most ``commits`` transactions of svcproxy."""
        now = generation()
        others = self._others(now)
        self._recorded = now if others is not None and others <= commits else None

    def is_unchanged(self) -> bool:
        """Whether the generation is the recorded one, but for changes of the accounting tables."""
        return self._others(generation()) == 0

    def _others(self, now: int | None) -> int | None:
        """Return how many transactions since the recorded one are not those of own tables.

        ``None`` if it is unknown.
        """
        if self._recorded is None or now is None:
            return None
        own = self._own.count(self._recorded, now) if self._own is not None else 0
        return now - self._recorded - own


class TableSizeTracker:
    """Tracks changes by the sizes of both tables, for the legacy variant.

    Replacing a rule by another of the same length goes unnoticed; every tenth resync, which the
    loop never skips, finds such a change.
    """

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self._recorded: bytes | None = None

    def before_read(self) -> None:
        """Record the sizes of the tables that are about to be read."""
        self._recorded = table_sizes(self._family)

    def before_write(self) -> None:
        """Stop trusting the recorded sizes if another process has changed the tables."""
        if not self.is_unchanged():
            self._recorded = None

    def after_write(self, _commits: int) -> None:
        """Record the sizes after svcproxy's own write."""
        if self._recorded is not None:
            self._recorded = table_sizes(self._family)

    def is_unchanged(self) -> bool:
        """Whether the tables have the recorded sizes."""
        return self._recorded is not None and table_sizes(self._family) == self._recorded
