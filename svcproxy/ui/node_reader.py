"""Finds out what pages show: asks the daemon, and reads the kernel."""

import time
from collections.abc import Hashable, Mapping, Sequence

import msgspec

from svcproxy.admin.client import AdminClient
from svcproxy.admin.core.protocol import Repairs, Status
from svcproxy.explain.core.diff_documents import persisting
from svcproxy.explain.core.service_list import Observed, service_list
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.kernel_state import FamilyKernel, comparisons, read_kernel
from svcproxy.explain.views import view_of_status
from svcproxy.model.names import IPFamily, Kind
from svcproxy.ui.caching import Kept
from svcproxy.ui.core.latency import StageLatency, stage_latencies
from svcproxy.ui.core.node import Comparison, Snapshot
from svcproxy.ui.core.rows import ServiceRow, service_rows

_SECONDS = 2.0
_PAUSES = (0.0, 0.3, 1.0)
"""Seconds before each reading of the kernel; there is a second one only if the first differs."""


class _View(msgspec.Struct, frozen=True):
    """The view of a node, and the state of the daemon on which it depends."""

    view: NodeView
    state: Hashable


class Reading(msgspec.Struct, frozen=True):
    """What was read from the daemon and the kernel together.

    Attributes:
        view: what the node is meant to do.
        kernel: what its kernel holds, by family.
        comparison: whether both agree.
        rows: the Services.
    """

    view: NodeView
    kernel: Mapping[IPFamily, FamilyKernel]
    comparison: Comparison
    rows: Sequence[ServiceRow]


class NodeReader:
    """Reads what the daemon and the kernel have, not more often than needed.

    Args:
        client: asks the daemon.
    """

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._view: _View | None = None
        self._status: Kept[Status] = Kept(1.0)
        self._reading: Kept[Reading] = Kept(_SECONDS)
        self._latencies: Kept[Sequence[StageLatency]] = Kept(_SECONDS)
        self._repairs: Kept[Repairs] = Kept(1.0)

    def read(self) -> Reading:
        """Return what the daemon and the kernel have; a few seconds old at most in small clusters.

        Raises:
            AdminError: the daemon cannot be asked.
        """
        return self._reading.get(self._read)

    def view(self) -> NodeView:
        """Return what the node is meant to do now.

        Raises:
            AdminError: the daemon cannot be asked.
        """
        return self._read_view().view

    def snapshot(self) -> Snapshot:
        """Return what the overview shows.

        Raises:
            AdminError: the daemon cannot be asked.
        """
        reading = self.read()
        repairs = self._repairs.get(self._client.repairs)
        return Snapshot(
            status=self._status.get(self._client.status),
            rows=reading.rows,
            latencies=self._latencies.get(lambda: stage_latencies(self._client.metrics())),
            repairs=repairs.repairs,
            repaired=repairs.total,
            comparison=reading.comparison,
        )

    def _read(self) -> Reading:
        """Read again what differs: a change that is programmed between two readings is none.

        A daemon whose syncs fail, and one that gets changes all the time, never stands still, so
        what differs in three readings counts.
        """
        known: Mapping[IPFamily, FamilyKernel] = {}
        for pause in _PAUSES:
            time.sleep(pause)
            view = self._read_view()
            known = _confirmed(known, read_kernel(view.view))
            if not _differences(known):
                break
            if view.state is not None and view.state == _state(self._client.status()):
                break
        return _reading(view.view, known)

    def _read_view(self) -> _View:
        status = self._client.status()
        known, state = self._view, _state(status)
        if known is not None and state is not None and state == known.state:
            return known
        # Dropped first, so that the old and the new view do not need memory at the same time
        self._view = known = None
        objects = [obj for kind in Kind for obj in self._client.objects(kind)]
        self._view = _View(view_of_status(status, objects), state)
        return self._view


def _state(status: Status) -> Hashable | None:
    """Return what the view depends on; ``None`` if changes are pending.

    Manifests have no resource version. They cannot change without a sync, however.
    """
    families = status.families.items()
    if any(about.pending or about.failing for _, about in families):
        return None
    return (
        status.pid,
        status.started,
        tuple(sorted((kind, watch.resource_version) for kind, watch in status.watches.items())),
        tuple((family, about.synced, *about.held) for family, about in families),
    )


def _confirmed(
    before: Mapping[IPFamily, FamilyKernel], now: Mapping[IPFamily, FamilyKernel]
) -> Mapping[IPFamily, FamilyKernel]:
    """Return a reading with only those differences that an earlier one had; all if it is the first."""
    if not before:
        return now
    found = {}
    for family, kernel in now.items():
        earlier = before[family].differences if family in before else ()
        differences = tuple(persisting(earlier, kernel.differences))
        found[family] = msgspec.structs.replace(kernel, differences=differences)
    return found


def _differences(kernel: Mapping[IPFamily, FamilyKernel]) -> int:
    return sum(len(found.differences) for found in kernel.values())


def _reading(view: NodeView, kernel: Mapping[IPFamily, FamilyKernel]) -> Reading:
    listed = service_list(view, Observed(comparisons(kernel)))
    errors = dict.fromkeys(found.error for found in kernel.values() if found.error)
    comparison = Comparison(
        at=time.time(), differences=_differences(kernel), problem="; ".join(errors)
    )
    return Reading(view, kernel, comparison, service_rows(listed.services))
