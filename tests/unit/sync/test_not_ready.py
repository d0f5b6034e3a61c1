"""Since when endpoints are not ready."""

from itertools import pairwise

import pytest

from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import EndpointSlice, SliceEndpoint
from svcproxy.sync.core import not_ready
from svcproxy.sync.core.not_ready import NotReady

WEB, OTHER = NamespacedName("default", "web"), NamespacedName("default", "other")


def piece(service: NamespacedName = WEB, **ready: bool) -> EndpointSlice:
    """A slice of endpoints named by letters."""
    endpoints = tuple(SliceEndpoint(address, ready=value) for address, value in ready.items())
    return EndpointSlice(NamespacedName("default", "x"), service, IPFamily.IPV4, (), endpoints)


def test_the_time_of_the_change_is_remembered_until_it_is_ready() -> None:
    seen = NotReady()
    states = [piece(a=True, b=True), piece(a=False, b=True), piece(a=False, b=False)]
    for now, (before, after) in enumerate(pairwise(states)):
        seen.changed(before, after, float(now))
    assert seen.by_service() == {WEB: {"a": 0.0, "b": 1.0}}
    seen.changed(states[-1], piece(a=True, b=False), 5.0)
    assert seen.by_service() == {WEB: {"b": 1.0}}
    seen.changed(piece(a=True, b=False), piece(a=True), 6.0)
    assert seen.by_service() == {}


def test_one_that_was_never_ready_has_no_time() -> None:
    seen = NotReady()
    seen.changed(None, piece(a=False), 1.0)
    seen.changed(piece(a=False), piece(a=False, b=False), 2.0)
    assert seen.by_service() == {}


@pytest.mark.parametrize("after", [None, piece(OTHER, a=False)])
def test_a_slice_that_goes_takes_its_times_along(after: EndpointSlice | None) -> None:
    seen = NotReady()
    seen.changed(piece(a=True), piece(a=False), 1.0)
    seen.changed(piece(a=False), after, 2.0)
    assert seen.by_service() == {}


def test_the_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_ready, "NOT_READY_ENDPOINTS", 2)
    seen = NotReady()
    seen.changed(piece(a=True, b=True, c=True), piece(a=False, b=False, c=False), 1.0)
    assert len(seen.by_service()[WEB]) == 2
    seen.changed(piece(a=False, b=False, c=False), piece(a=True, b=True, c=True), 2.0)
    seen.changed(piece(c=True), piece(c=False), 3.0)
    assert seen.by_service() == {WEB: {"c": 3.0}}
