"""The settings of the nftables backend."""

from msgspec import structs

from svcproxy.backends.settings import Settings


class NftablesSettings(Settings, frozen=True, gc=False):
    """Adds what concerns nftables alone; plain ``Settings`` do as well.

    Attributes:
        service_cidrs: the ranges that cluster IPs are taken from; what is sent to an address in
            them that belongs to no Service is dropped.
    """

    service_cidrs: tuple[str, ...] = ()


def with_service_cidrs(settings: Settings, service_cidrs: tuple[str, ...]) -> Settings:
    """The same settings with the ranges of cluster IPs as the ServiceCIDRs have them now."""
    if not service_cidrs:
        return settings
    return NftablesSettings(**structs.asdict(settings), service_cidrs=service_cidrs)
