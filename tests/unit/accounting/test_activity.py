"""Counting clients in bounded memory."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.accounting.core.activity import Activities, Counted, Frequent
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.model.names import IPFamily, Protocol

KEY = FrontendKey(IPFamily.IPV4, "10.96.0.10", 80, Protocol.TCP)


def test_few_items_are_counted_exactly() -> None:
    frequent: Frequent[str] = Frequent(3)
    for item in "aabacb":
        frequent.add(item)
    assert frequent.most(2) == [Counted("a", 3), Counted("b", 2)]


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 8))
def test_many_items_are_counted_within_the_stated_error(stream: list[int], size: int) -> None:
    frequent: Frequent[int] = Frequent(size)
    for item in stream:
        frequent.add(item)
    found = {counted.item: counted for counted in frequent.most(size)}
    assert len(found) <= size
    for item, times in Counter(stream).items():
        if times > len(stream) / size:
            assert item in found
    for item, counted in found.items():
        assert counted.times - counted.error <= stream.count(item) <= counted.times


def test_a_frontend_has_its_clients_and_endpoints() -> None:
    activities = Activities()
    for number in range(1000):
        activities.add(KEY, number.to_bytes(4, "big"), (b"\x0a\0\0\1", 8080))
    found = activities.of(KEY)
    assert found.count == 1000
    assert found.endpoints.most(5) == [Counted((b"\x0a\0\0\1", 8080), 1000)]
    assert len(found.clients.most(1000)) == 16
    assert activities.of(KEY._replace(port=81)).count == 0
