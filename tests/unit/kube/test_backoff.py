from svcproxy.kube.core.backoff import Backoff


def test_waits_are_random_below_a_limit_that_doubles() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    backoff = Backoff(uniform, first=0.2, longest=1.0)
    assert [backoff.next() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert {low for low, _ in drawn} == {0.0}
    backoff.reset()
    assert backoff.next() == 0.2
