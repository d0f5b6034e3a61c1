"""Values are kept for a time that depends on how long they took to compute."""

import pytest

from svcproxy.ui.caching import Kept


class Source:
    """Computes numbers in rising order; each takes ``cost`` seconds of its own clock."""

    def __init__(self, cost: float) -> None:
        self.now = 0.0
        self._cost = cost
        self._number = 0

    def compute(self) -> int:
        self.now += self._cost
        self._number += 1
        return self._number


@pytest.mark.parametrize(("cost", "seconds"), [(0.01, 1.0), (2.0, 10.0)])
def test_a_value_is_kept_for_its_time_or_five_times_its_cost(cost: float, seconds: float) -> None:
    source = Source(cost)
    kept: Kept[int] = Kept(1.0, lambda: source.now, lambda: source.now)
    assert kept.get(source.compute) == 1
    source.now += seconds - 0.001
    assert kept.get(source.compute) == 1
    source.now += 0.002
    assert kept.get(source.compute) == 2


def test_a_failure_keeps_nothing() -> None:
    source = Source(0.0)
    kept: Kept[int] = Kept(1.0, lambda: source.now, lambda: source.now)

    def fail() -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        kept.get(fail)
    assert kept.get(source.compute) == 1
