import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config.parsing import (
    Bind,
    format_duration,
    parse_bind,
    parse_bool,
    parse_cidrs,
    parse_duration,
    parse_integer,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("+0", 0.0),
        ("0s", 0.0),
        ("1s", 1.0),
        ("+1s", 1.0),
        ("-1s", -1.0),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("100ms", 0.1),
        ("1h0m0s", 3600.0),
        ("2h22m", 8520.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("7us", 7e-6),
        ("7\u00b5s", 7e-6),
        ("7\u03bcs", 7e-6),
        ("7ns", 7e-9),
        ("1s1s", 2.0),
        ("9223372036854775807ns", 9223372036.854775807),
    ],
)
def test_durations_are_parsed_as_by_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "s", ".s", "1 s", " 1s", "1s ", "1d", "--1s", "+-1s", "1e3s", "\u0661s"),
        *("9223372036854775808ns", "300000000h", "-", "+", "1s-1s", "infinity", "nan"),
    ],
)
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5\u00b5s"),
        (0.1, "100ms"),
        (0.0125, "12.5ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (60.0, "1m0s"),
        (90.0, "1m30s"),
        (3600.0, "1h0m0s"),
        (5400.25, "1h30m0.25s"),
        (-90.0, "-1m30s"),
        (900.0, "15m0s"),
    ],
)
def test_durations_are_formatted_as_by_go(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_formatted_duration_is_parsed_to_itself(nanoseconds: int) -> None:
    seconds = nanoseconds / 10**9
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        parse_duration(text)
    except ValueError as error:
        assert "not a duration" in str(error)  # noqa: PT017 - most texts raise, some do not


@pytest.mark.parametrize(
    ("text", "bind", "shown"),
    [
        ("127.0.0.1:10249", Bind("127.0.0.1", 10249), "127.0.0.1:10249"),
        ("0.0.0.0:1", Bind("0.0.0.0", 1), "0.0.0.0:1"),
        ("[::]:10249", Bind("::", 10249), "[::]:10249"),
        ("[FD00:0::1]:65535", Bind("fd00::1", 65535), "[fd00::1]:65535"),
        ("10.0.0.1", Bind("10.0.0.1", 7), "10.0.0.1:7"),
        ("::1", Bind("::1", 7), "[::1]:7"),
    ],
)
def test_bind_addresses(text: str, bind: Bind, shown: str) -> None:
    assert parse_bind(text, 7) == bind
    assert str(bind) == shown
    assert parse_bind(shown, 7) == bind


def test_an_empty_bind_address_disables() -> None:
    assert parse_bind("", 7) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost:80", "'localhost' is not an IP address"),
        ("10.0.0.1:0", "from 1 to 65535"),
        ("10.0.0.1:65536", "from 1 to 65535"),
        ("10.0.0.1:http", "not an IP address and port"),
        (":10249", "'' is not an IP address"),
        ("[]:10249", "'' is not an IP address"),
        ("[::]", "not an IP address and port"),
        ("10249", "not an IP address and port"),
        ("10.0.0.256:1", "'10.0.0.256' is not an IP address"),
        ("10.0.0.1:\u0661", "not an IP address and port"),
    ],
)
def test_invalid_bind_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_bind(text, 10249)


def test_cidrs_become_canonical() -> None:
    assert parse_cidrs("10.244.1.7/16, FD00:0:0::1/48") == ("10.244.0.0/16", "fd00::/48")
    assert parse_cidrs("") == ()
    assert parse_cidrs(" ") == ()


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/33", "x/8", "10.0.0.0/8,", ",", "/", "a b"])
def test_invalid_cidrs(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR; write for example"):
        parse_cidrs(text)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["", "yes", "tRUE", "2"])
def test_invalid_booleans(text: str) -> None:
    with pytest.raises(ValueError, match="write true or false"):
        parse_bool(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("-0", 0), ("5", 5), ("+5", 5), ("-5", -5), ("1_000", 1000)),
        *(("0x1F", 31), ("-0X1f", -31), ("0b11", 3), ("0o17", 15), ("017", 15), ("0_17", 15)),
    ],
)
def test_integers_are_parsed_as_by_go(text: str, value: int) -> None:
    assert parse_integer(-1000, 1000)(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 5",
        "5 ",
        "x",
        "1e2",
        "2.5",
        "08",
        "0x",
        "1__0",
        "_1",
        "1_",
        "--5",
        "\u0661",
        "9" * 5000,
    ],
)
def test_invalid_integers(text: str) -> None:
    with pytest.raises(ValueError, match="not a whole number from 0 to 9"):
        parse_integer(0, 9)(text)
