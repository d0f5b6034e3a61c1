"""The settings of nftables mode: everything that its rules depend on besides Service ports."""

from msgspec import structs

from svcproxy.backends.settings import Settings


class NftablesSettings(Settings, frozen=True, gc=False):
    """``Settings`` with the values that only nftables rules depend on.

    Plain ``Settings`` are accepted as well, where these values have their defaults.

    Attributes:
        service_cidrs: the ranges that cluster IPs are taken from. Packets to addresses in them
            that belong to no Service are dropped.
        drop_invalid: drop forwarded packets in conntrack state INVALID (kubernetes#74839).
    """

    service_cidrs: tuple[str, ...] = ()
    drop_invalid: bool = False


def extend_settings(
    settings: Settings, *, service_cidrs: tuple[str, ...], drop_invalid: bool
) -> NftablesSettings:
    """Return ``settings`` with the values that only nftables rules depend on."""
    own = {"service_cidrs": service_cidrs, "drop_invalid": drop_invalid}
    return NftablesSettings(**{**structs.asdict(settings), **own})
