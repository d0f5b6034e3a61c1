"""Random addresses and ports."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from svcproxy.model.names import IPFamily

ports = st.integers(1, 65535)


def addresses(family: IPFamily) -> st.SearchStrategy[str]:
    """Addresses of a family in canonical form."""
    if family is IPFamily.IPV4:
        return st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
    groups = st.lists(st.sampled_from([0, 0, 1, 0xFFFF, 0x10]), min_size=8, max_size=8)
    return groups.map(lambda g: str(IPv6Address(b"".join(n.to_bytes(2, "big") for n in g))))
