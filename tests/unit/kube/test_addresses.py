import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.core.addresses import canonical_cidr, canonical_ip, is_ipv6


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.000.0.01", "10.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("FD00::0001", "fd00::1"),
        ("fd00:0:0:0:0:0:0:1", "fd00::1"),
        ("::", "::"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:102:304", "1.2.3.4"),
        ("::ffff:01.02.3.4", "1.2.3.4"),
        ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
    ],
)
def test_addresses_become_canonical(text: str, canonical: str) -> None:
    assert canonical_ip(text) == canonical


@pytest.mark.parametrize(
    "text",
    ["", " ", "10.0.0", "10.0.0.256", "10.0.0.0.1", "10.0.0.1/32", "fe80::1%eth0", "web", "1:2",
     "10.0.0.1 ", "10.0.0.1\n", "\u0661.2.3.4", "None"],
)  # fmt: skip
def test_invalid_addresses_are_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address") as caught:
        canonical_ip(text)
    assert repr(text) in str(caught.value)


@given(st.ip_addresses(v=4))
def test_any_ipv4_address_is_canonical_also_with_padding(address: ipaddress.IPv4Address) -> None:
    padded = ".".join(f"{int(octet):03}" for octet in str(address).split("."))
    assert canonical_ip(str(address)) == canonical_ip(padded) == str(address)


@given(st.ip_addresses(v=6))
def test_any_spelling_of_ipv6_becomes_the_one_of_ipaddress(address: ipaddress.IPv6Address) -> None:
    canonical = str(address.ipv4_mapped or address)
    assert canonical_ip(address.exploded.upper()) == canonical
    assert canonical_ip(canonical) == canonical


@given(st.text(max_size=20))
def test_any_text_is_canonicalised_or_refused(text: str) -> None:
    try:
        canonical = canonical_ip(text)
    except ValueError:
        return
    assert str(ipaddress.ip_address(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.1.2.3/08", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00::1/64", "fd00::/64"),
        ("::/0", "::/0"),
        ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
    ],
)
def test_networks_become_canonical(text: str, canonical: str) -> None:
    assert canonical_cidr(text) == canonical


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/-1", "fd00::/129", "/8", "x/8",
     "::ffff:1.2.3.4/95", ""],
)  # fmt: skip
def test_invalid_networks_are_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR") as caught:
        canonical_cidr(text)
    assert repr(text) in str(caught.value)


def test_the_family_is_derived_from_the_text() -> None:
    assert is_ipv6("fd00::1")
    assert not is_ipv6("10.0.0.0/8")
