"""Encoding of requests, and batches of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.netlink.client import MAX_BYTES, MAX_MESSAGES, _batches
from svcproxy.netlink.core.messages import HEADER, NetlinkRequest, encode, messages
from svcproxy.netlink.errors import MalformedError

sizes = st.lists(st.sampled_from([0, 1, 40, 30_000, MAX_BYTES, 3 * MAX_BYTES]), max_size=500)


@given(sizes)
def test_batches_contain_all_requests_and_none_is_too_long(sizes: list[int]) -> None:
    requests = [NetlinkRequest(1, 0, bytes(size)) for size in sizes]
    batches = list(_batches(iter(requests)))
    for batch in batches:
        assert 0 < len(batch) <= MAX_MESSAGES
        size = sum(len(encode(request, 1)) for request in batch)
        assert size <= MAX_BYTES or len(batch) == 1
    assert [request for batch in batches for request in batch] == requests


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=9))))
def test_split_inverts_encode(
    parts: list[tuple[int, int, bytes]],
) -> None:
    requests = [NetlinkRequest(*part) for part in parts]
    data = b"".join(encode(request, n) for n, request in enumerate(requests))
    found = list(messages(data))
    assert [(m.kind, m.body, m.sequence) for m in found] == [
        (r.kind, r.body, n) for n, r in enumerate(requests)
    ]
    assert all(m.flags == r.flags | 1 for m, r in zip(found, requests, strict=True))
    if data:
        with pytest.raises(MalformedError):
            list(messages(data[: HEADER.size - 1]))
