"""Garbage collection and the heap of the daemon's process."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from svcproxy.runtime_tuning import collect_rarely, memory_manager
from svcproxy.state.desired import Changes
from svcproxy.sync.after_sync import SyncResult


@pytest.fixture(autouse=True)
def _restore_thresholds() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def result(*, first: bool) -> SyncResult:
    return SyncResult(Changes({}), {}, None, first)


def test_the_collector_is_back_when_all_families_are_programmed() -> None:
    collect_rarely()
    loading = gc.get_threshold()
    after_sync = memory_manager(2)
    for first in (True, False):
        after_sync(result(first=first))
        assert gc.get_threshold() == loading
        assert not gc.get_freeze_count()
    after_sync(result(first=True))
    assert gc.get_threshold() < loading
    assert gc.get_freeze_count() > 1000
    frozen = gc.get_freeze_count()
    more = [[i] for i in range(1000)]
    after_sync(result(first=False))
    assert gc.get_freeze_count() == frozen, more


COUNT_HEAPS = """
import ctypes, sys, threading
from svcproxy.runtime_tuning import share_one_heap
if "one" in sys.argv:
    assert share_one_heap()
release, held = threading.Event(), []
def allocate():
    held.append([bytes(600 + i) for i in range(2000)])
    release.wait()
for _ in range(4):
    threading.Thread(target=allocate, daemon=True).start()
while len(held) < 4:
    pass
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stdout = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stdout)
libc.fflush(stdout)
release.set()
"""


def heaps(*arguments: str) -> int:
    """Return how many heaps the C library lists (``malloc_info(3)``) after threads allocated."""
    command = [sys.executable, "-c", COUNT_HEAPS, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("<heap")


RETURN_MEMORY = """
from pathlib import Path
from svcproxy.runtime_tuning import return_free_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

taken = [bytes(4000) for _ in range(5000)]
last = bytes(4000)
del taken
before = resident()
assert return_free_memory()
print(before - resident())
"""


def test_free_memory_below_used_memory_is_returned() -> None:
    command = [sys.executable, "-c", RETURN_MEMORY]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) > 5000 * 4000 / 2


def test_threads_allocate_from_one_heap() -> None:
    assert heaps() > 1
    assert heaps("one") == 1
