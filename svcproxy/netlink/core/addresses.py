"""IP addresses between their canonical text and the bytes of messages."""

from ipaddress import IPv6Address


def packed(address: str) -> bytes:
    """The 4 or 16 bytes of an address in canonical form.

    Raises:
        ValueError: it is no address.
    """
    if ":" in address:
        return IPv6Address(address).packed
    # ipaddress takes three times as long, and there may be 50,000 of them.
    parts = bytes(map(int, address.split(".")))
    if len(parts) != 4:
        raise ValueError(f"{address!r} is no IP address")
    return parts


def text(address: bytes) -> str:
    """The canonical form of an address of 4 or 16 bytes."""
    if len(address) == 4:
        return "%d.%d.%d.%d" % tuple(address)  # noqa: UP031 - the fastest way, see packed
    return str(IPv6Address(address))
