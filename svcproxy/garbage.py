"""When Python's garbage collector goes through the state, and when it leaves it alone.

The state is a great many small objects that live on. With the usual thresholds the collector
looks at them again and again while they are loaded, a fifth of a cold start, and at all of them
now and then for ever after. They are in no cycles, so there is nothing to be found.
"""

import gc

from svcproxy.heap import give_back
from svcproxy.sync.loop import SyncHook, SyncResult

_WHILE_LOADING = (1_000_000, 50, 100)
_AFTERWARDS = (10_000, 50, 100)
"""What fails leaves cycles behind (exceptions and their frames), and a cycle may hold a connection
with its buffers: 100,000 objects were 20 MB in an hour of API outages and malformed objects."""
_MANY = 500
"""Service ports whose change takes so much memory that it is given back at once."""


def collect_rarely() -> None:
    """Hold back while the first lists are loaded and programmed.

    Not for ever: as long as no API server answers, failed attempts leave cycles behind.
    """
    gc.set_threshold(*_WHILE_LOADING)


def collector(families: int) -> SyncHook:
    """Go back to normal when the first sync of all ``families`` is done.

    What is there by then is left out of all collections to come. What the sync needed for a
    moment, and what later large ones need, is given back.
    """
    waiting = families

    def settle(settled: SyncResult) -> None:
        nonlocal waiting
        if settled.first:
            waiting -= 1
            if not waiting:
                gc.freeze()
                gc.set_threshold(*_AFTERWARDS)
        # Without changes it was a comparison, for which all was read.
        if settled.first or not settled.changes or len(settled.changes.ports) >= _MANY:
            give_back()

    return settle
