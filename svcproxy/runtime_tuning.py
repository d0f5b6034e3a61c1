"""Settings of Python's garbage collector and of the C library's heap.

The daemon's state is a great many small objects that live long and form no cycles. With the
default thresholds the collector visits them again and again while they are loaded, which takes a
fifth of a cold start, and visits all of them now and then for as long as the daemon runs.
"""

import ctypes
import gc

from svcproxy.sync.after_sync import SyncHook, SyncResult

_WHILE_LOADING = (1_000_000, 50, 100)
_AFTERWARDS = (10_000, 50, 100)
"""Failures leave cycles behind (exceptions and their frames), and a cycle may hold a connection
with its buffers: 100,000 objects were 20 MB in an hour of API outages and malformed objects."""
_MANY = 500
"""After a sync of at least this many Service ports, unused memory is returned to the system."""
_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt(3)``."""


def collect_rarely() -> None:
    """Raise the thresholds of the garbage collector while the first lists are loaded.

    The collector stays on: failed attempts to reach an API server leave cycles behind.
    """
    gc.set_threshold(*_WHILE_LOADING)


def memory_manager(families: int) -> SyncHook:
    """Return the hook that ends the loading phase and returns memory after large syncs.

    After the first sync of all ``families``, the hook sets the normal thresholds and excludes all
    present objects from later collections. Memory that only a first or large sync or a resync
    needed is returned to the system.
    """
    waiting = families

    def after_sync(result: SyncResult) -> None:
        nonlocal waiting
        if result.first:
            waiting -= 1
            if not waiting:
                gc.freeze()
                gc.set_threshold(*_AFTERWARDS)
        # A sync without changes was a resync, which reads the whole kernel state.
        if result.first or not result.changes or len(result.changes.ports) >= _MANY:
            return_free_memory()

    return after_sync


def share_one_heap() -> bool:
    """Make all threads allocate from one heap; call it before any thread starts.

    glibc gives each thread a heap of its own, so that threads need not wait for each other. Each
    heap keeps the memory of its peak: about 5 MB with 10,000 Services. Python's threads take turns
    anyway.

    Returns:
        Whether the C library supports it; only glibc may.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_ARENA_MAX, 1))


def return_free_memory() -> bool:
    """Return unused memory to the system; this takes a few milliseconds.

    Without this call the heap shrinks from its end only, where a small long-lived object soon
    blocks it: 14 MB stayed allocated after a storm of changes in iptables mode.

    Returns:
        Whether the C library supports it; only glibc may.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is None:
        return False
    malloc_trim(0)
    return True
