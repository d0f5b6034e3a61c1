"""The desired state of one IP family: computes Service ports from API objects."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

import msgspec

from svcproxy.limits import SERVICE_TARGETS
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.objects import EndpointSlice, Node, Service, ServiceCIDR, ServicePortSpec
from svcproxy.model.serviceport import FrontendKind, ServicePort
from svcproxy.state.cidrs import ServiceRanges
from svcproxy.state.claims import Address, Claim, Claims, Conflict
from svcproxy.state.port_builder import service_port
from svcproxy.state.slices import Merged, SliceCache
from svcproxy.state.topology import NodeLocation


class Changes(msgspec.Struct, frozen=True):
    """The result of a checkout, and the input of an incremental plan.

    Attributes:
        ports: the new state of each changed Service port; ``None`` if it was removed.
        previous: the former state of each changed port that existed before.
        node_changed: whether the Node object changed.
        service_cidrs_changed: whether the ranges of cluster IPs changed.
        triggered: when the changed endpoints were last changed in the API.
        conflicts: claims to addresses that were refused since the last checkout.
        defects: Services that could not be computed; their ports are unchanged.
        truncated: Services that exceed ``limits.SERVICE_TARGETS`` since this checkout.
    """

    ports: dict[ServicePortName, ServicePort | None]
    previous: dict[ServicePortName, ServicePort] = {}
    node_changed: bool = False
    service_cidrs_changed: bool = False
    triggered: tuple[datetime, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    defects: Mapping[NamespacedName, Exception] = {}
    truncated: tuple[NamespacedName, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ports) or self.node_changed or self.service_cidrs_changed

    def then(self, later: "Changes") -> "Changes":
        """Return these changes and the ``later`` ones as one."""
        if not self:
            return later
        # ``previous`` is the state before the first change. A port that did not exist then has no
        # entry in the first change, and must not get one from the second.
        unknown = later.previous.keys() - self.ports.keys()
        return Changes(
            ports={**self.ports, **later.ports},
            previous={**self.previous, **{name: later.previous[name] for name in unknown}},
            node_changed=self.node_changed or later.node_changed,
            service_cidrs_changed=self.service_cidrs_changed or later.service_cidrs_changed,
            triggered=self.triggered + later.triggered,
            conflicts=self.conflicts + later.conflicts,
        )

    def including(self, retried: Mapping[ServicePortName, ServicePort | None]) -> "Changes":
        """Add Service ports that did not change but are retried."""
        if not retried:
            return self
        return msgspec.structs.replace(self, ports={**retried, **self.ports})

    def split(self, held: Collection[ServicePortName]) -> tuple["Changes", "Changes"]:
        """Split off the changes of the ports that are ``held`` back."""
        kept = self.ports.keys() & held if held else set()
        if not kept:
            return self, Changes({})
        waiting = Changes(
            {name: self.ports[name] for name in kept},
            {name: self.previous[name] for name in kept & self.previous.keys()},
        )
        settled = msgspec.structs.replace(
            self,
            ports={name: port for name, port in self.ports.items() if name not in kept},
            previous={name: port for name, port in self.previous.items() if name not in kept},
        )
        return settled, waiting


class DesiredState:
    """Computes the Service ports of one family from API objects, for dirty Services only.

    Events call the ``update_…`` and ``delete_…`` methods, which only store objects and mark Services
    dirty; ``checkout`` computes. The result depends on the stored objects only, not on the order of
    events.

    Args:
        family: the IP family.
        node_name: the name of this node.
        external_ips: whether ``spec.externalIPs`` are honoured. They allow everyone who may create
            a Service to intercept the traffic for an address (CVE-2020-8554, KEP-5707).
    """

    def __init__(self, family: IPFamily, node_name: str, *, external_ips: bool = True) -> None:
        self._family = family
        self._external_ips = external_ips
        self._node_name = node_name
        self._services: dict[NamespacedName, Service] = {}
        self._slices = SliceCache()
        self._claims = Claims()
        self._node: Node | None = None
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._ports_of: dict[NamespacedName, tuple[ServicePortName, ...]] = {}
        self._dirty: set[NamespacedName] = set()
        self._node_dirty = False
        self._service_cidrs = ServiceRanges(family)
        self._triggered: dict[NamespacedName, list[datetime]] = {}
        self._conflicts: dict[NamespacedName, frozenset[Conflict]] = {}
        self._over_limit: set[NamespacedName] = set()

    @property
    def ports(self) -> Mapping[ServicePortName, ServicePort]:
        """All Service ports as of the last checkout."""
        return self._ports

    @property
    def services(self) -> Mapping[NamespacedName, Service]:
        """The stored Services; those without addresses of this family are not stored."""
        return self._services

    def claimants(self, name: NamespacedName) -> Iterator[NamespacedName]:
        """Yield a Service, and those that claim one of its addresses, as often as they do.

        They are as of the last checkout. Safe from any thread.
        """
        return self._claims.claimants(name)

    @property
    def slices(self) -> SliceCache:
        """The stored EndpointSlices of this family."""
        return self._slices

    @property
    def node(self) -> Node | None:
        """This node's Node object; ``None`` if there is none."""
        return self._node

    @property
    def location(self) -> NodeLocation:
        """The name and zone of this node."""
        return NodeLocation(self._node_name, self._node.zone if self._node else "")

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The known ranges of cluster IPs of this family."""
        return self._service_cidrs.current

    @property
    def service_cidr_objects(self) -> Mapping[NamespacedName, ServiceCIDR]:
        """The stored ServiceCIDRs."""
        return self._service_cidrs.objects

    @property
    def pending(self) -> bool:
        """Whether something changed since the last checkout."""
        return bool(self._dirty) or self._node_dirty or self._service_cidrs.changed

    @property
    def waiting(self) -> int:
        """The number of Services and other objects that changed since the last checkout."""
        return len(self._dirty) + self._node_dirty + self._service_cidrs.changed

    @property
    def conflicts(self) -> int:
        """The number of addresses that a Service claims and another one holds."""
        return sum(map(len, self._conflicts.values()))

    def slices_of(self, service: NamespacedName) -> list[EndpointSlice]:
        """Return the EndpointSlices of a Service in the order in which they are merged."""
        return self._slices.of_service(service)

    def conflicts_of(self, service: NamespacedName) -> tuple[Conflict, ...]:
        """Return the addresses that a Service claims and another one holds, sorted."""
        return tuple(sorted(self._conflicts.get(service, ()), key=lambda c: c.address))

    def claim(self, service: NamespacedName, address: Address) -> Claim | None:
        """Return the claim of a Service to an address; ``None`` if it does not claim it."""
        return self._claims.claim(service, address)

    def update_service(self, service: Service) -> None:
        """Store the new state of a Service; one without addresses of this family is removed."""
        if not self._of_family(service.cluster_ips):
            self.delete_service(service.name)
        elif self._services.get(service.name) != service:
            self._services[service.name] = service
            self._dirty.add(service.name)

    def delete_service(self, name: NamespacedName) -> None:
        """Remove a Service."""
        if self._services.pop(name, None) is not None:
            self._dirty.add(name)

    def update_slice(self, endpoint_slice: EndpointSlice) -> None:
        """Store the new state of an EndpointSlice; one of the other family is removed."""
        if endpoint_slice.family is not self._family:
            self.delete_slice(endpoint_slice.name)
            return
        for service in self._slices.update(endpoint_slice):
            self._dirty.add(service)
            if endpoint_slice.triggered is not None and service == endpoint_slice.service:
                self._triggered.setdefault(service, []).append(endpoint_slice.triggered)

    def delete_slice(self, name: NamespacedName) -> None:
        """Remove an EndpointSlice.

        Its trigger time is that of its last update, not of the deletion. The pending measurement
        of its Service would be wrong and is dropped, as in kube-proxy.
        """
        for service in self._slices.delete(name):
            self._dirty.add(service)
            self._triggered.pop(service, None)

    def update_node(self, node: Node | None) -> None:
        """Store the new state of this node's Node object; ``None`` if it was deleted."""
        if node == self._node:
            return
        if (node.zone if node else "") != (self._node.zone if self._node else ""):
            self._dirty.update(self._services)
        self._node = node
        self._node_dirty = True

    def update_service_cidr(self, found: ServiceCIDR) -> None:
        """Store the new state of a ServiceCIDR."""
        self._service_cidrs.update(found)

    def delete_service_cidr(self, name: NamespacedName) -> None:
        """Remove a ServiceCIDR."""
        self._service_cidrs.delete(name)

    def checkout(self) -> Changes:
        """Compute what changed since the last checkout, and mark all Services clean."""
        ports: dict[ServicePortName, ServicePort | None] = {}
        previous: dict[ServicePortName, ServicePort] = {}
        conflicts: list[Conflict] = []
        defects: dict[NamespacedName, Exception] = {}
        over_limit = self._over_limit.copy()
        dirty = self._update_claims(defects)
        for name in sorted(dirty):
            lost: list[Conflict] = []
            try:
                finished = dict(self._compute_ports(name, lost))
            except MemoryError:  # not the Service's fault: all Services stay dirty
                raise
            except Exception as error:  # noqa: BLE001 - affects this Service only, and is reported
                defects[name] = error
                continue
            conflicts.extend(c for c in lost if c not in self._conflicts.get(name, ()))
            if lost:
                self._conflicts[name] = frozenset(lost)
            else:
                self._conflicts.pop(name, None)
            self._store(name, finished, ports, previous)
        changes = Changes(
            ports,
            previous,
            self._node_dirty,
            self._service_cidrs.check_out(),
            triggered=tuple(t for times in self._triggered.values() for t in times),
            conflicts=tuple(conflicts),
            defects=defects,
            truncated=tuple(sorted(self._over_limit - over_limit)),
        )
        self._dirty, self._triggered, self._node_dirty = set(), {}, False
        return changes

    def _store(
        self,
        name: NamespacedName,
        finished: Mapping[ServicePortName, ServicePort],
        ports: dict[ServicePortName, ServicePort | None],
        previous: dict[ServicePortName, ServicePort],
    ) -> None:
        """Store the computed ports of a Service; add changes to ``ports`` and ``previous``."""
        for gone in set(self._ports_of.get(name, ())) - finished.keys():
            previous[gone] = self._ports.pop(gone)
            ports[gone] = None
        for key, port in finished.items():
            known = self._ports.get(key)
            if known != port:
                if known is not None:
                    previous[key] = known
                self._ports[key] = ports[key] = port
        if finished:
            self._ports_of[name] = tuple(finished)
        else:
            self._ports_of.pop(name, None)

    def _update_claims(self, defects: dict[NamespacedName, Exception]) -> set[NamespacedName]:
        """Update the claims of dirty Services; return all Services that must be computed.

        A Service that gains or loses an address thereby becomes dirty as well. If this fails for a
        Service, its claims stay as they were, and ``defects`` gets the reason.
        """
        for name in tuple(self._dirty):
            try:
                claims = self._claims_of(name)
            except MemoryError:  # not the Service's fault: all Services stay dirty
                raise
            except Exception as error:  # noqa: BLE001 - affects this Service only, and is reported
                defects[name] = error
                continue
            self._dirty.update(self._claims.replace(name, claims))
        return self._dirty - defects.keys()

    def _claims_of(self, name: NamespacedName) -> dict[Address, Claim]:
        """Return the addresses that a Service claims; none if it was deleted."""
        claims: dict[Address, Claim] = {}
        service = self._services.get(name)
        if service is not None:
            for spec in service.ports:
                for kind, address in self._claimed_addresses(service, spec):
                    external = kind is not FrontendKind.CLUSTER_IP
                    claim = Claim(external, service.created, name)
                    claims[address] = min(claim, claims.get(address, claim))
        return claims

    def _claimed_addresses(
        self, service: Service, spec: ServicePortSpec
    ) -> list[tuple[FrontendKind, Address]]:
        """Return the addresses of a Service port in this family, each with its first role.

        The order is that of the rules in kube-proxy's iptables mode: cluster IP, external IP,
        load-balancer IP.
        """
        kinds = {self._of_family(service.cluster_ips)[0]: FrontendKind.CLUSTER_IP}
        for address in self._of_family(service.external_ips) if self._external_ips else ():
            kinds.setdefault(address, FrontendKind.EXTERNAL_IP)
        for address in self._of_family(service.load_balancer_ips):
            kinds.setdefault(address, FrontendKind.LOAD_BALANCER)
        found = [(kind, Address(a, spec.port, spec.protocol)) for a, kind in kinds.items()]
        if spec.node_port:
            found.append((FrontendKind.NODE_PORT, Address("", spec.node_port, spec.protocol)))
        return found

    def _of_family(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        if not addresses:
            return ()
        is_ipv6 = self._family is IPFamily.IPV6
        return tuple([a for a in addresses if (":" in a) is is_ipv6])

    def _compute_ports(
        self, name: NamespacedName, conflicts: list[Conflict]
    ) -> Iterator[tuple[ServicePortName, ServicePort]]:
        """Compute the ports of a Service; none if it was deleted."""
        service = self._services.get(name)
        if service is None:
            self._over_limit.discard(name)
            return
        found = self.merged(service)
        if found.truncated:
            self._over_limit.add(name)
        else:
            self._over_limit.discard(name)
        location = self.location
        ranges = self._of_family(service.source_ranges)
        for spec in service.ports:
            key = ServicePortName(name.namespace, name.name, spec.name, spec.protocol)
            granted = self._granted_addresses(service, spec, conflicts)
            candidates = found.by_port.get((spec.name, spec.protocol), ())
            yield (
                key,
                service_port(
                    key, service, granted, candidates, location=location, source_ranges=ranges
                ),
            )

    def merged(self, service: Service) -> Merged:
        """Merge the EndpointSlices of a Service, before readiness and topology are considered."""
        port_keys = {(spec.name, spec.protocol) for spec in service.ports}
        limit = max_endpoints(service)
        return self._slices.candidates(service.name, self._node_name, port_keys, limit)

    def _granted_addresses(
        self, service: Service, spec: ServicePortSpec, conflicts: list[Conflict]
    ) -> list[tuple[FrontendKind, Address]]:
        """Return the addresses that the Service holds; add those of others to ``conflicts``."""
        granted: list[tuple[FrontendKind, Address]] = []
        for kind, address in self._claimed_addresses(service, spec):
            winner = self._claims.holder(address)
            if winner == service.name:
                granted.append((kind, address))
            elif winner is not None:
                conflicts.append(Conflict(address, winner, service.name))
        return granted


def max_endpoints(service: Service) -> int:
    """How many endpoints each port of a Service may have (``limits.SERVICE_TARGETS``)."""
    addresses = len(service.cluster_ips) + len(service.external_ips)
    addresses += len(service.load_balancer_ips) + 1  # and the node port
    return max(1, SERVICE_TARGETS // (addresses * max(1, len(service.ports))))
