"""Which Service ports an object of the table belongs to.

A transaction is atomic: a single element that the kernel refuses would block every other Service.
This module maps refused messages to the Service ports that they belong to, so that the transaction
can be repeated without these ports.
"""

from collections.abc import Iterable, Iterator

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import affinity_key, render
from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.attributes import MalformedError, collect, string
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

_NOBODY: frozenset[ServicePortName] = frozenset()
_NAME_IN = {
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
"""The bytes of both in a key."""


class PortIndex:
    """Finds the Service ports that an element, set or chain belongs to.

    Args:
        ports: the Service ports to search.
        settings: the settings that they are rendered with.
        former: their previous states; searched for objects that belong to none of ``ports``. They
            come second because a frontend may have moved from one port to another.
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
        """Yield the parts of element keys that identify a port; each kind has its own length."""
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
            yield b"owner" + affinity_key(port, self._settings.family) + protocol

    def of(self, message: Message) -> frozenset[ServicePortName]:
        """Return the Service ports that a message belongs to; empty if it belongs to none."""
        try:
            name = string(collect(message.body).get(_NAME_IN.get(message.kind, 0), b""))
            if message.kind in {NEW_ELEMENT, DELETE_ELEMENT}:
                found = [self.of_element(name, key) for key in element_keys(message.body)]
                return _NOBODY.union(*found)
        except MalformedError:
            return _NOBODY
        return self._of_set(name) if table_sets.is_on_demand(name) else _NOBODY

    def of_element(self, name: str, key: bytes) -> frozenset[ServicePortName]:
        """Return the Service ports that an element of a set belongs to."""
        if name in {table_sets.HAIRPINS, table_sets.CLUSTER_ADDRESSES}:
            part = key[: self._address]
        elif name.startswith(table_sets.AFFINITY_ENDPOINTS):
            part = b"owner" + key[self._address + _PORT_AND_PROTOCOL // 2 :]
        elif name.startswith((table_sets.NODE_PORTS, table_sets.OF_NODE_PORTS)):
            part = key[:_PORT_AND_PROTOCOL]
        else:
            part = key[: self._address + _PORT_AND_PROTOCOL]
        return next((frozenset(by[part]) for by in self._by_key if part in by), _NOBODY)

    def _of_set(self, name: str) -> frozenset[ServicePortName]:
        """Return the Service ports with elements in a set on demand, which may have a chain."""
        found = (frozenset(p.name for p in v if self._needs(p, name)) for v in self._versions)
        return next((names for names in found if names), _NOBODY)

    def _needs(self, port: ServicePort, name: str) -> bool:
        rendered = render(port, self._settings)
        return name in rendered.elements or any(name == where for where, _ in rendered.lists)
