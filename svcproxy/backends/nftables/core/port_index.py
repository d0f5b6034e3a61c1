"""Maps messages of a transaction to the Service ports that they belong to.

A transaction is atomic, so a single element that the kernel refuses would block every other
Service. The index names the Service ports of refused messages, so that the transaction can be
repeated without them.
"""

from collections.abc import Iterable, Iterator

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import affinity_key, render
from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.attributes import collect, string
from svcproxy.netlink.core.nf_tables.datatypes import address_key, port_key, protocol_key
from svcproxy.netlink.core.nf_tables.protocol import (
    DELETE_CHAIN,
    DELETE_ELEMENT,
    DELETE_RULE,
    DELETE_SET,
    NEW_CHAIN,
    NEW_ELEMENT,
    NEW_RULE,
    NEW_SET,
)
from svcproxy.netlink.core.nf_tables.transaction import Message, element_keys
from svcproxy.netlink.errors import MalformedError

_NO_PORTS: frozenset[ServicePortName] = frozenset()
_NAME_ATTRIBUTE = {
    NEW_SET: 2,
    DELETE_SET: 2,
    NEW_CHAIN: 3,
    DELETE_CHAIN: 3,
    NEW_RULE: 2,
    DELETE_RULE: 2,
    NEW_ELEMENT: 2,
    DELETE_ELEMENT: 2,
}
_PORT_AND_PROTOCOL = 8
"""The number of bytes that port and protocol take in a key."""


class PortIndex:
    """Finds the Service ports of an element, set or chain.

    Args:
        ports: the Service ports to search.
        settings: the settings that they are rendered with.
        former: earlier states of Service ports, searched for objects that belong to none of
            ``ports``. They are second because a frontend may have moved to another port.
    """

    def __init__(
        self,
        ports: Iterable[ServicePort],
        settings: Settings,
        former: Iterable[ServicePort] = (),
    ) -> None:
        self._settings = settings
        self._address = settings.family.bits // 8
        self._versions = [list(ports), list(former)]
        self._by_key = [self._index(found) for found in self._versions]

    def _index(self, ports: Iterable[ServicePort]) -> dict[bytes, set[ServicePortName]]:
        found: dict[bytes, set[ServicePortName]] = {}
        for port in ports:
            for key in self._keys(port):
                found.setdefault(key, set()).add(port.name)
        return found

    def _keys(self, port: ServicePort) -> Iterator[bytes]:
        """Yield the parts of element keys that identify a port; each kind differs in length."""
        protocol = protocol_key(port.name.protocol)
        for frontend in port.frontends:
            number = protocol + port_key(frontend.port)
            if frontend.address:
                yield address_key(frontend.address)
                yield address_key(frontend.address) + number
            else:
                yield number
        for endpoint in (*port.cluster_endpoints, *port.local_endpoints):
            yield address_key(endpoint.address)
        if port.affinity_seconds and port.frontends:
            yield b"affinity" + affinity_key(port, self._settings.family) + protocol

    def ports_of(self, message: Message) -> frozenset[ServicePortName]:
        """Return the Service ports that a message belongs to; empty if there are none."""
        try:
            name = string(collect(message.body).get(_NAME_ATTRIBUTE.get(message.kind, 0), b""))
            if message.kind in {NEW_ELEMENT, DELETE_ELEMENT}:
                found = [self.ports_of_element(name, key) for key in element_keys(message.body)]
                return _NO_PORTS.union(*found)
        except MalformedError:
            return _NO_PORTS
        return self._ports_of_set(name) if table_sets.is_on_demand(name) else _NO_PORTS

    def ports_of_element(self, name: str, key: bytes) -> frozenset[ServicePortName]:
        """Return the Service ports that an element of a set belongs to."""
        if name in {table_sets.HAIRPINS, table_sets.CLUSTER_ADDRESSES}:
            part = key[: self._address]
        elif name.startswith(table_sets.AFFINITY_ENDPOINTS):
            part = b"affinity" + key[self._address + _PORT_AND_PROTOCOL // 2 :]
        elif name.startswith((table_sets.NODE_PORTS, table_sets.OF_NODE_PORTS)):
            part = key[:_PORT_AND_PROTOCOL]
        else:
            part = key[: self._address + _PORT_AND_PROTOCOL]
        return next((frozenset(by[part]) for by in self._by_key if part in by), _NO_PORTS)

    def _ports_of_set(self, name: str) -> frozenset[ServicePortName]:
        """Return the Service ports that have elements in an on-demand set."""
        found = (frozenset(p.name for p in v if self._needs(p, name)) for v in self._versions)
        return next((names for names in found if names), _NO_PORTS)

    def _needs(self, port: ServicePort, name: str) -> bool:
        rendered = render(port, self._settings)
        return name in rendered.elements or any(name == where for where, _ in rendered.lists)
