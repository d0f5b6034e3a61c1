"""How the C library shares out memory that Python asks of it for large objects, and keeps it."""

import ctypes

_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt(3)``."""


def share_one_heap() -> bool:
    """Have all threads take memory from one heap; call it before there are threads.

    glibc gives each thread one of its own, so that threads need not wait for each other, and each
    keeps what its largest moment took: some 5 MB with 10,000 Services. Python's threads take
    turns anyway.

    Returns:
        Whether the C library knows of that; others than glibc may not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_ARENA_MAX, 1))


def give_back() -> bool:
    """Give the system what is not in use: what a large sync or comparison has needed for a moment.

    Left alone, the heap shrinks from its end only, where something small soon sits that stays:
    14 MB after a storm of changes in iptables mode. It takes some milliseconds.

    Returns:
        Whether the C library knows of that; others than glibc may not.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is None:
        return False
    malloc_trim(0)
    return True
