"""The last check of a restore input, and which lines a refusal names."""

import pytest

from svcproxy.backends.xtables.core.restoretext import RestoreRefused, join_lines, refusal

INPUT = "*filter\n-A A -j B\nCOMMIT\n*nat\n:C - [0:0]\n-A C -j D\nCOMMIT\n"


def test_sound_lines_are_joined() -> None:
    assert join_lines(["*nat", '-A X -m comment --comment "a b" -j Y', "COMMIT"]).count("\n") == 3
    assert join_lines([]) == ""


@pytest.mark.parametrize(
    "line",
    [
        "-A X -j Y\n-A INPUT -j DROP",
        "-A X -j Y\r",
        "-A X\0 -j Y",
        '-A X -m comment --comment "open',
        "-A X " + "y" * 10_000,
    ],
)
def test_an_unsound_line_is_refused_and_named(line: str) -> None:
    with pytest.raises(RestoreRefused) as caught:
        join_lines(["*nat", "-A GOOD -j Y", line, "COMMIT"])
    assert caught.value.lines == (line,)
    assert not caught.value.partial
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("said", "lines", "partial"),
    [
        (
            "iptables-restore v1.8.9: bad value\nError occurred at line: 6\nTry -h",
            ("-A C -j D",),
            True,
        ),
        ("iptables-restore: line 2 failed\n", ("-A A -j B",), False),
        ("iptables-restore: line 3 failed\n", (), False),
        ("iptables-restore: line 7 failed\n", (), True),
        (
            "v1.8.9 (nf_tables): \nline 6: RULE_APPEND failed (No such file): rule in chain C",
            ("-A C -j D",),
            True,
        ),
        (
            "(nf_tables): \nline 5: CHAIN_ADD failed (x)\nline 6: RULE_APPEND failed (x)\n",
            (":C - [0:0]", "-A C -j D"),
            True,
        ),
        ("", (), True),
        ("line 0 failed line 99999999999999999999999 failed: line 400 failed", (), True),
    ],
)
def test_the_lines_that_a_refusal_names(
    said: str, lines: tuple[str, ...], *, partial: bool
) -> None:
    found = refusal("iptables-restore", said, INPUT)
    assert found.lines == lines
    assert found.partial == partial
