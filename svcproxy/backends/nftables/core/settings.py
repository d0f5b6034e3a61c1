"""The settings of the nftables backend."""

from msgspec import structs

from svcproxy.backends.settings import Settings


class NftablesSettings(Settings, frozen=True, gc=False):
    """Adds what concerns nftables alone; plain ``Settings`` do as well.

    Attributes:
        service_cidrs: the ranges that cluster IPs are taken from; what is sent to an address in
            them that belongs to no Service is dropped.
        drop_invalid: drop forwarded packets that conntrack calls INVALID (kubernetes#74839).
    """

    service_cidrs: tuple[str, ...] = ()
    drop_invalid: bool = False


def extended(
    settings: Settings, *, service_cidrs: tuple[str, ...], drop_invalid: bool
) -> NftablesSettings:
    """The same settings with those of nftables alone."""
    own = {"service_cidrs": service_cidrs, "drop_invalid": drop_invalid}
    return NftablesSettings(**{**structs.asdict(settings), **own})
