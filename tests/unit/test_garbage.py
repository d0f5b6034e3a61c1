import gc
from collections.abc import Iterator

import pytest

from svcproxy.garbage import collect_rarely, collector
from svcproxy.state.desired import Changes
from svcproxy.sync.loop import SyncResult


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def settled(*, first: bool) -> SyncResult:
    return SyncResult(Changes({}), {}, None, first)


def test_the_collector_is_back_when_all_families_are_programmed() -> None:
    collect_rarely()
    loading = gc.get_threshold()
    settle = collector(2)
    for first in (True, False):
        settle(settled(first=first))
        assert gc.get_threshold() == loading
        assert not gc.get_freeze_count()
    settle(settled(first=True))
    assert gc.get_threshold() < loading
    assert gc.get_freeze_count() > 1000
    frozen = gc.get_freeze_count()
    more = [[i] for i in range(1000)]
    settle(settled(first=False))
    assert gc.get_freeze_count() == frozen, more
