"""Endpoints keep their numbers when a list changes."""

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.nftables.core.endpoint_order import stable_order
from svcproxy.model.serviceport import Endpoint

lists = st.lists(st.integers(1, 20), unique=True, max_size=12).map(
    lambda numbers: tuple(Endpoint(f"10.0.0.{n}", 80) for n in numbers)
)


@given(lists, st.lists(st.sampled_from([None, *range(1, 21)]), max_size=12))
def test_the_order_contains_the_wanted_endpoints(
    wanted: tuple[Endpoint, ...], numbers: list[int | None]
) -> None:
    present = [Endpoint(f"10.0.0.{n}", 80) if n else None for n in numbers]
    assert sorted(stable_order(wanted, present)) == sorted(wanted)


@given(lists, lists)
def test_endpoints_that_stay_keep_their_numbers(
    wanted: tuple[Endpoint, ...], present: tuple[Endpoint, ...]
) -> None:
    arranged = stable_order(wanted, present)
    for number, endpoint in enumerate(present[: len(wanted)]):
        if endpoint in wanted:
            assert arranged[number] == endpoint


@given(lists)
def test_an_unchanged_list_keeps_its_order(wanted: tuple[Endpoint, ...]) -> None:
    assert stable_order(tuple(sorted(wanted)), wanted) == wanted


def test_new_endpoints_take_the_numbers_of_removed_ones() -> None:
    a, b, c, d = (Endpoint(f"10.0.0.{n}", 80) for n in range(1, 5))
    assert stable_order((a, c, d), (a, b, c)) == (a, d, c)
    assert stable_order((b, c), (a, b, c)) == (c, b)
    assert stable_order((a, b, c, d), (c, a)) == (c, a, b, d)
