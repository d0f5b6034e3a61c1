"""The settings of the nftables backend."""

from svcproxy.backends.settings import Settings


class NftablesSettings(Settings, frozen=True, gc=False):
    """Adds what concerns nftables alone; plain ``Settings`` do as well.

    Attributes:
        service_cidrs: the ranges that cluster IPs are taken from; what is sent to an address in
            them that belongs to no Service is dropped.
    """

    service_cidrs: tuple[str, ...] = ()
