"""Conversion of addresses between text and bytes."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.netlink.core.addresses import packed, text


@given(st.ip_addresses().map(str))
def test_round_trip(address: str) -> None:
    assert packed(address) == ip_address(address).packed
    assert text(packed(address)) == address


@pytest.mark.parametrize(
    "wrong", ["", "10.0.0", "10.0.0.1.2", "10.0.0.256", "fd00::1::2", "a.b.c.d"]
)
def test_invalid_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        packed(wrong)


def test_an_ipv4_compatible_address_has_one_form() -> None:
    """The kernel's tools print ``::1.2.3.4``, ``ipaddress`` prints ``::102:304``."""
    assert packed("::1.2.3.4") == packed("::102:304")
    assert text(packed("::1.2.3.4")) == "::102:304"
