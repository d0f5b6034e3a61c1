import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.kube.core import rawjson
from svcproxy.kube.core.rawjson import BrokenJsonError
from tests.examples import examples

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
FEW = settings(max_examples=examples(40), deadline=None)


def depth_of(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


def pruned(value: object, depth: int) -> object:
    if isinstance(value, list):
        return [pruned(inner, depth - 1) for inner in value] if depth else None
    if isinstance(value, dict):
        return {key: pruned(inner, depth - 1) for key, inner in value.items()} if depth else None
    return value


@FEW
@given(value=VALUES, depth=st.integers(1, 4), ascii_only=st.booleans())
def test_pruning_replaces_only_values_that_are_too_deep(
    *, value: object, depth: int, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    result = rawjson.prune(text, depth)
    assert json.loads(result) == pruned(value, depth)
    if depth_of(value) <= depth:
        assert result == text


@FEW
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.sampled_from([None, 1]))
def test_members_equal_those_of_the_json_module(
    value: dict[str, object], indent: int | None
) -> None:
    found = rawjson.members(json.dumps(value, indent=indent).encode())
    decoded = {json.loads(b'"%s"' % key): json.loads(text) for key, text in found.items()}
    assert decoded == value


@FEW
@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]))
def test_elements_equal_those_of_the_json_module(value: list[object], indent: int | None) -> None:
    found = rawjson.elements(json.dumps(value, indent=indent).encode())
    assert [json.loads(text) for text in found] == value


@FEW
@given(text=st.text(st.characters(categories=["L", "Cs"])), escaped=st.booleans())
def test_repaired_text_is_valid(*, text: str, escaped: bool) -> None:
    encoded = json.dumps(text, ensure_ascii=escaped).encode(errors="surrogatepass")
    repaired = json.loads(rawjson.repair(encoded))
    repaired.encode()  # no surrogate is left
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert repaired == text


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        (rb'"\ud800"', rb'"\ufffd"'),
        (rb'"\uD800\uDC00"', rb'"\uD800\uDC00"'),
        (rb'"\udc00\ud800\ud83d\ude00"', rb'"\ufffd\ufffd\ud83d\ude00"'),
        (rb'"\\ud800"', rb'"\\ud800"'),
        (rb'"\\\ud800"', rb'"\\\ufffd"'),
        (b'"\xff"', "\ufffd".join('""').encode()),
    ],
)
def test_lone_surrogates_and_invalid_utf8_become_the_replacement_character(
    text: bytes, repaired: bytes
) -> None:
    assert rawjson.repair(text) == repaired


@pytest.mark.parametrize(
    "text", [b"", b"[", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1 2}', b"[1"]
)
def test_truncated_text_is_refused(text: bytes) -> None:
    with pytest.raises(BrokenJsonError):
        rawjson.members(text)
    with pytest.raises(BrokenJsonError):
        rawjson.elements(text)


def test_members_before_a_truncation_are_readable() -> None:
    found = rawjson.members(b'{"type":"ADDED","object":{"kind":"Service","metadata', partial=True)
    assert found == {b"type": b'"ADDED"', b"object": b'{"kind":"Service","metadata'}


@pytest.mark.parametrize(
    "unit", [b"[", b"]", b'"', b"\\", b'\\"', b'["', b"[{", b'{"a":', b"\\ud800", b"\xff", b" "]
)
@pytest.mark.parametrize("start", [b"", b'"', b"[", b'{"a":"'])
def test_the_time_is_linear(start: bytes, unit: bytes) -> None:
    def seconds(size: int) -> float:
        text = start + unit * (size // len(unit))
        began = time.process_time()
        rawjson.decodable(text)
        rawjson.members(text, partial=True)
        return time.process_time() - began

    # Quadratic, the second would take 256 times as long as the first.
    assert min(seconds(160_000) for _ in range(2)) < 64 * max(seconds(10_000), 0.001)
