"""The arguments of ``svcproxy trace``."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.explain.core.trace_arguments import (
    Origin,
    QuestionError,
    Target,
    family_of,
    parse_origin,
    parse_target,
)
from svcproxy.model.names import IPFamily, NamespacedName, Protocol


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("node", Origin(word="node")),
        ("outside", Origin(word="outside")),
        ("10.244.1.7", Origin(address="10.244.1.7")),
        ("10.244.1.7:40000", Origin(address="10.244.1.7", port=40000)),
        ("FD00:0::7", Origin(address="fd00::7")),
        ("[fd00::7]:40000", Origin(address="fd00::7", port=40000)),
        ("::ffff:10.244.1.7", Origin(address="10.244.1.7")),
        ("default/client-0", Origin(pod=NamespacedName("default", "client-0"))),
    ],
)
def test_from(text: str, origin: Origin) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.96.0.10:80", Target(80, "", None, address="10.96.0.10")),
        ("10.96.0.10:53/udp", Target(53, "", Protocol.UDP, address="10.96.0.10")),
        ("[fd00::10]:80/TCP", Target(80, "", Protocol.TCP, address="fd00::10")),
        ("default/web:80", Target(80, "", None, service=NamespacedName("default", "web"))),
        (
            "default/web:http/sctp",
            Target(0, "http", Protocol.SCTP, service=NamespacedName("default", "web")),
        ),
        ("node:30080", Target(30080, "", None, word="node")),
    ],
)
def test_to(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither an address"),
        ("client", "neither an address"),
        ("10.244.1.7:0", "'0' is not a port"),
        ("10.244.1.7:65536", "'65536' is not a port"),
        ("[10.244.1.7]:80", "neither an address"),
        ("fe80::1%eth0", "neither an address"),
        ("a/b/c", "neither an address"),
        ("Default/web", "neither an address"),
        ("x" * 401, "longer than 400 characters"),
    ],
)
def test_malformed_from(text: str, reason: str) -> None:
    with pytest.raises(QuestionError, match="FROM") as error:
        parse_origin(text)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.96.0.10", "has no port"),
        ("10.96.0.10:", "neither a port number"),
        ("10.96.0.10:http", "only a Service has named ports"),
        ("10.96.0.10:99999", "is not a port"),
        ("10.96.0.10:1234567890123", "is not a port"),
        ("10.96.0.10:٣", "neither a port number"),
        ("10.96.0.10:80/icmp", "is not a protocol"),
        ("10.96.0.10:80/", "is not a protocol"),
        ("fd00::10:80", "put the IPv6 address in brackets"),
        ("[10.96.0.10]:80", "neither an address"),
        ("web:80", "neither an address"),
        ("outside:80", "neither an address"),
        ("default/-web:80", "neither an address"),
        ("x" * 401, "longer than 400 characters"),
    ],
)
def test_malformed_to(text: str, reason: str) -> None:
    with pytest.raises(QuestionError, match="TO") as error:
        parse_target(text)
    assert reason in str(error.value)


@given(st.text(max_size=500) | st.text("0123456789abcdef:./[]-#%", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_origin, parse_target):
        with contextlib.suppress(QuestionError):
            assert 0 <= parse(text).port <= 65535


def test_the_family_must_be_one() -> None:
    six, service = parse_origin("fd00::7"), parse_target("default/web:80")
    assert family_of(six, service, None) is IPFamily.IPV6
    assert family_of(parse_origin("node"), service, None) is None
    assert family_of(parse_origin("node"), service, "6") is IPFamily.IPV6
    with pytest.raises(QuestionError, match="different IP families"):
        family_of(six, parse_target("10.96.0.10:80"), None)
    with pytest.raises(QuestionError, match="different IP families"):
        family_of(six, service, "4")
