"""How the C library shares out memory that Python asks of it for large objects."""

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
