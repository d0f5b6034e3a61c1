"""Counts the connections of all frontends in the background, while a command does something else."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from svcproxy.accounting.connections import ConnectionEvents, Served, open_connections
from svcproxy.accounting.core.frontends import frontend_keys
from svcproxy.conntrack.table import ConntrackError
from svcproxy.explain.core.documents import ConnectionCounts, FrontendKey
from svcproxy.explain.core.view import NodeView

Counts = Mapping[FrontendKey, ConnectionCounts]


class Counting:
    """The result of counting; complete when the context of ``counted_meanwhile`` has ended.

    Attributes:
        connections: the connections of each frontend; ``None`` if they were not counted.
        notes: why they were not counted or are too few, in words.
    """

    def __init__(self) -> None:
        self.connections: Counts | None = None
        self.notes: tuple[str, ...] = ()


@contextmanager
def counted_meanwhile(view: NodeView, seconds: float) -> Iterator[Counting]:
    """Count connections while the body of the context runs, and wait for the end of the sample.

    Nothing is counted without a daemon: the connections of this machine belong to no manifests.

    Args:
        view: the node.
        seconds: how long to count new connections; 0 counts nothing.
    """
    counting = Counting()
    if view.status is None or not seconds:
        yield counting
        return
    wakeup, end = os.pipe()
    with ThreadPoolExecutor(1) as executor:
        try:
            future = executor.submit(_count, view, seconds, wakeup)
            yield counting
            _finish(counting, future)
        finally:
            # After an error or an interrupt, the sample ends at once
            os.close(end)
    os.close(wakeup)


def _finish(counting: Counting, future: "Future[tuple[Counts, int]]") -> None:
    try:
        counting.connections, lost = future.result()
    except ConntrackError as error:
        counting.notes = (f"connections are not counted: {error}",)
        return
    if lost:
        counting.notes = (f"{lost} events were lost: there were more new connections",)


def _count(view: NodeView, seconds: float, wakeup: int) -> tuple[Counts, int]:
    served = {f: Served(about.state.ports, about.settings) for f, about in view.families.items()}
    with ConnectionEvents(served) as events:
        found = events.sample(seconds, wakeup)
    opened = open_connections(served)
    counts: dict[FrontendKey, ConnectionCounts] = {}
    for family, about in served.items():
        for key in frontend_keys(family, about.ports):
            rate = found.activities.of(key).count / found.seconds
            counts[key] = ConnectionCounts(new_per_second=round(rate, 2), open=opened.get(key, 0))
    return counts, found.lost
