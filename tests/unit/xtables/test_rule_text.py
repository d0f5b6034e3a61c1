"""Text in rules: safe comments, and addresses in the format of iptables-save."""

from ipaddress import IPv6Address
from socket import AF_INET6, inet_ntop

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.xtables.core.rule_text import comment, format_address, format_cidr


def test_an_ordinary_comment_is_unchanged() -> None:
    text = "kube-system/kube-dns:dns-tcp cluster IP"
    assert comment(text) == f'-m comment --comment "{text}"'


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('a"b c', '"a_b c"'),
        ("a\\ b", '"a_ b"'),
        ("it's x", '"it_s x"'),
        ("a\n-A INPUT -j DROP", '"a_-A INPUT -j DROP"'),
        ("nul\0 cr\r tab\t", '"nul_ cr_ tab_"'),
        ("é/\u2028\udcff", '"_/__"'),
        ("plain_Text-9", "plain_Text-9"),
        ("x" * 300, "x" * 255),
        ("", '""'),
    ],
)
def test_a_hostile_comment_is_sanitised(text: str, written: str) -> None:
    assert comment(text) == f"-m comment --comment {written}"


@given(st.text())
def test_any_comment_becomes_a_short_printable_ascii_text(text: str) -> None:
    written = comment(text).removeprefix("-m comment --comment ").encode("ascii")
    inner = written.removeprefix(b'"').removesuffix(b'"')
    assert len(inner) <= 255
    assert not set(inner) & set(b"\"\\'")
    assert all(0x20 <= byte < 0x7F for byte in inner)


@given(st.integers(0, 2**128 - 1) | st.integers(0, 2**48))
def test_ipv6_addresses_have_the_format_of_inet_ntop(number: int) -> None:
    address = IPv6Address(number)
    assert format_address(str(address)) == inet_ntop(AF_INET6, address.packed)
    assert format_cidr(f"{address}/64") == f"{inet_ntop(AF_INET6, address.packed)}/64"


def test_addresses_have_the_format_of_iptables_save() -> None:
    assert format_address("::102:304") == "::1.2.3.4"
    assert format_address("::ffff:102:304") == "::ffff:1.2.3.4"
    assert format_address("fd00::102:304") == "fd00::102:304"
    assert format_address("10.0.0.1") == "10.0.0.1"
    assert format_cidr("::102:0/112") == "::1.2.0.0/112"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "1.2.3",
        "1.2.3.4.5",
        "1:2",
        "10.0.0.1/8",
        "10.0.0.1 -j X",
        "\0",
        "\udcff:",
        "::1%lo",
    ],
)
def test_other_text_than_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        format_address(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/", "10.0.0.0/8 -j X", "10.0.0.0/\u0661", "x/8"]
)
def test_other_text_than_a_cidr_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        format_cidr(text)
