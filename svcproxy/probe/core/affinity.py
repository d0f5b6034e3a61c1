"""Which entries of session affinity a probe can add."""

from typing import NamedTuple

from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.iptables.core.render import render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import affinity_key
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core import addresses
from svcproxy.netlink.core.nf_tables.datatypes import protocol_key


class NftElement(NamedTuple):
    """An element of a map of svcproxy's table."""

    family: IPFamily
    map: str
    key: bytes


class SetMember(NamedTuple):
    """A member of an ipset."""

    family: IPFamily
    set: str
    address: str


class RecentAddress(NamedTuple):
    """An address in a list of the kernel's ``recent`` match."""

    family: IPFamily
    list: str
    address: str


AffinityEntry = NftElement | SetMember | RecentAddress


def affinity_entries(
    mode: str, port: ServicePort, settings: Settings, source: str
) -> tuple[AffinityEntry, ...]:
    """Return all entries that connections of one client can add; none without affinity.

    IPVS has no entries but persistence templates, which cannot be deleted.
    """
    if not port.affinity_seconds or not port.frontends:
        return ()
    family = settings.family
    if mode == "nftables":
        protocol = protocol_key(port.name.protocol)
        key = affinity_key(port, family) + protocol + addresses.packed(source)
        return (NftElement(family, table_sets.AFFINITY, key),)
    if mode == "iptables" and isinstance(settings, IptablesSettings):
        rules = render(port, settings)
        if settings.affinity_sets:
            return tuple(SetMember(family, name, source) for name in sorted(rules.sets))
        lists = sorted(name for name in rules.chains if name.startswith(ENDPOINT_PREFIX))
        return tuple(RecentAddress(family, name, source) for name in lists)
    return ()
