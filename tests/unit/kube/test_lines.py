import time

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.core.lines import LineSplitter, LongLine


@given(st.lists(st.binary(max_size=12)), st.data())
def test_lines_do_not_depend_on_the_chunks(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"\n".join(parts) + b"\n"
    splitter, lines = LineSplitter(8), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        lines += splitter.feed(stream[:size])
        stream = stream[size:]
    expected = [line for line in b"\n".join(parts).split(b"\n") if len(line) > 8 or line.strip()]
    assert len(lines) == len(expected)
    for line, whole in zip(lines, expected, strict=True):
        if len(whole) <= 8:
            assert line == whole
        else:
            assert isinstance(line, LongLine)
            assert whole.startswith(line.head)


def test_an_oversized_line_is_returned_immediately_and_its_rest_is_skipped() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"a\n" + b"x" * 8) == [b"a"]
    assert splitter.feed(b"yyy") == [LongLine(b"xxxxxxxxyyy")]
    assert splitter.feed(b"z" * 1000) == []
    assert splitter.feed(b"zz\nb\n") == [b"b"]


def test_the_time_for_a_line_is_linear() -> None:
    def seconds(pieces: int) -> float:
        splitter, piece = LineSplitter(1 << 30), b"x" * (1 << 14)
        began = time.process_time()
        for _ in range(pieces):
            splitter.feed(piece)
        splitter.feed(b"\n")
        return time.process_time() - began

    # 10 and 80 MB; quadratic, the second would take 64 times as long as the first.
    assert min(seconds(5120) for _ in range(2)) < 24 * max(seconds(640), 0.01)


def test_empty_lines_are_skipped() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"\n\n\r\na\n \n\n") == [b"a"]
    assert splitter.feed(b" ") == []
    assert splitter.feed(b"\n\nb\n") == [b"b"]
