"""The desired state of one IP family: API objects in, finished Service ports out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from svcproxy.limits import SERVICE_TARGETS
from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.objects import EndpointSlice, Node, Service, ServiceCIDR, ServicePortSpec
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.cidrs import ServiceRanges
from svcproxy.state.claims import Address, Claim, Claims, Conflict
from svcproxy.state.slices import Candidate, SliceCache
from svcproxy.state.topology import EndpointLists, Place, categorize

_FEW = 8
"""Above this number, addresses are looked up in a set: a Service may have thousands."""


class Changes(msgspec.Struct, frozen=True):
    """What one checkout found: the input of an incremental plan.

    ``ports`` maps each changed Service port to its new state, ``None`` if it is gone; ``previous``
    holds the former state of those that existed before. ``node_changed`` and
    ``service_cidrs_changed`` say whether these parts of the state changed. ``triggered`` are the
    times at which the changed endpoints were last changed in the API. ``conflicts`` began since
    the last checkout. ``defects`` are Services that could not be computed and stay as they were.
    ``truncated`` are Services that exceed ``limits.SERVICE_TARGETS`` since this checkout.
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
        """These changes followed by ``later`` ones, as one."""
        if not self:
            return later
        # The former state of a port is that before its first change. If the port did not exist
        # then, the first change has no entry for it, and must not get one now.
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
        """Add Service ports that are retried without having changed."""
        if not retried:
            return self
        return msgspec.structs.replace(self, ports={**retried, **self.ports})

    def split(self, held: Collection[ServicePortName]) -> tuple["Changes", "Changes"]:
        """Split into the changes in force, and those of the ports that are ``held`` back."""
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
    """Turns API objects of one family into finished Service ports, dirty names only.

    Events call the ``update_…`` and ``delete_…`` methods, which only store and mark names
    dirty; ``checkout`` computes. What is computed depends on the stored objects alone and not
    on the order in which they came.

    Args:
        family: the family.
        node_name: the name of this node.
        external_ips: whether ``spec.externalIPs`` count, which let anybody who may write a Service
            take an address (CVE-2020-8554, KEP-5707).
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
        self._names_of: dict[NamespacedName, tuple[ServicePortName, ...]] = {}
        self._dirty: set[NamespacedName] = set()
        self._node_dirty = False
        self._service_cidrs = ServiceRanges(family)
        self._triggered: dict[NamespacedName, list[datetime]] = {}
        self._conflicts: dict[NamespacedName, frozenset[Conflict]] = {}
        self._over_limit: set[NamespacedName] = set()

    @property
    def ports(self) -> Mapping[ServicePortName, ServicePort]:
        """Every Service port as of the last checkout."""
        return self._ports

    @property
    def node(self) -> Node | None:
        """This node's Node object, ``None`` while there is none."""
        return self._node

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The ranges of this family that cluster IPs are taken from, as far as they are known."""
        return self._service_cidrs.present

    @property
    def pending(self) -> bool:
        """Whether the next checkout has anything to look at."""
        return bool(self._dirty) or self._node_dirty or self._service_cidrs.changed

    @property
    def conflicts(self) -> int:
        """How many addresses are claimed by a Service that may not have them."""
        return sum(map(len, self._conflicts.values()))

    def update_service(self, service: Service) -> None:
        """Take the present state of a Service; those without our family are not ours."""
        if not self._ours(service.cluster_ips):
            self.delete_service(service.name)
        elif self._services.get(service.name) != service:
            self._services[service.name] = service
            self._dirty.add(service.name)

    def delete_service(self, name: NamespacedName) -> None:
        """Forget a Service."""
        if self._services.pop(name, None) is not None:
            self._dirty.add(name)

    def update_slice(self, piece: EndpointSlice) -> None:
        """Take the present state of an EndpointSlice; slices of the other family are not ours."""
        if piece.family is not self._family:
            self.delete_slice(piece.name)
            return
        for service in self._slices.update(piece):
            self._dirty.add(service)
            if piece.triggered is not None and service == piece.service:
                self._triggered.setdefault(service, []).append(piece.triggered)

    def delete_slice(self, name: NamespacedName) -> None:
        """Forget an EndpointSlice.

        Its trigger time is that of its last update, not of the deletion, so a pending
        measurement of its Service would be wrong and is dropped, as kube-proxy does.
        """
        for service in self._slices.delete(name):
            self._dirty.add(service)
            self._triggered.pop(service, None)

    def update_node(self, node: Node | None) -> None:
        """Take the present state of this node's Node object; ``None`` when it does not exist."""
        if node == self._node:
            return
        if (node.zone if node else "") != (self._node.zone if self._node else ""):
            self._dirty.update(self._services)
        self._node = node
        self._node_dirty = True

    def update_service_cidr(self, found: ServiceCIDR) -> None:
        """Take the present state of a ServiceCIDR."""
        self._service_cidrs.update(found)

    def delete_service_cidr(self, name: NamespacedName) -> None:
        """Forget a ServiceCIDR."""
        self._service_cidrs.delete(name)

    def checkout(self) -> Changes:
        """Compute what changed since the last checkout, and mark everything clean."""
        ports: dict[ServicePortName, ServicePort | None] = {}
        previous: dict[ServicePortName, ServicePort] = {}
        conflicts: list[Conflict] = []
        defects: dict[NamespacedName, Exception] = {}
        over_limit = self._over_limit.copy()
        dirty = self._settle_claims(defects)
        for name in sorted(dirty):
            lost: list[Conflict] = []
            try:
                finished = dict(self._finish(name, lost))
            except MemoryError:  # says nothing about the Service: all stay dirty
                raise
            except Exception as error:  # noqa: BLE001 - it costs this Service only; it is reported
                defects[name] = error
                continue
            conflicts.extend(c for c in lost if c not in self._conflicts.get(name, ()))
            if lost:
                self._conflicts[name] = frozenset(lost)
            else:
                self._conflicts.pop(name, None)
            self._replace(name, finished, ports, previous)
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

    def _replace(
        self,
        name: NamespacedName,
        finished: Mapping[ServicePortName, ServicePort],
        ports: dict[ServicePortName, ServicePort | None],
        previous: dict[ServicePortName, ServicePort],
    ) -> None:
        """Store the finished ports of a Service; add what changed to ``ports`` and ``previous``."""
        for gone in set(self._names_of.get(name, ())) - finished.keys():
            previous[gone] = self._ports.pop(gone)
            ports[gone] = None
        for key, port in finished.items():
            known = self._ports.get(key)
            if known != port:
                if known is not None:
                    previous[key] = known
                self._ports[key] = ports[key] = port
        if finished:
            self._names_of[name] = tuple(finished)
        else:
            self._names_of.pop(name, None)

    def _settle_claims(self, defects: dict[NamespacedName, Exception]) -> set[NamespacedName]:
        """Renew the claims of the dirty Services; return all Services to compute.

        A Service that gains or loses an address by that becomes dirty, too. If this fails for a
        Service, its claims stay as they were, and ``defects`` gets the reason.
        """
        for name in tuple(self._dirty):
            try:
                claims = self._claims_of(name)
            except MemoryError:  # says nothing about the Service: all stay dirty
                raise
            except Exception as error:  # noqa: BLE001 - it costs this Service only; it is reported
                defects[name] = error
                continue
            self._dirty.update(self._claims.replace(name, claims))
        return self._dirty - defects.keys()

    def _claims_of(self, name: NamespacedName) -> dict[Address, Claim]:
        """The addresses that a Service claims; none if it is gone."""
        claims: dict[Address, Claim] = {}
        service = self._services.get(name)
        if service is not None:
            for spec in service.ports:
                for kind, address in self._addresses(service, spec):
                    external = kind is not FrontendKind.CLUSTER_IP
                    claim = Claim(external, service.created, name)
                    claims[address] = min(claim, claims.get(address, claim))
        return claims

    def _addresses(
        self, service: Service, spec: ServicePortSpec
    ) -> list[tuple[FrontendKind, Address]]:
        """The addresses of one Service port in this family, each with its first role.

        The order is that of the rules in kube-proxy's iptables mode: cluster IP, external IP,
        load-balancer IP.
        """
        kinds = {self._ours(service.cluster_ips)[0]: FrontendKind.CLUSTER_IP}
        for address in self._ours(service.external_ips) if self._external_ips else ():
            kinds.setdefault(address, FrontendKind.EXTERNAL_IP)
        for address in self._ours(service.load_balancer_ips):
            kinds.setdefault(address, FrontendKind.LOAD_BALANCER)
        found = [(kind, Address(a, spec.port, spec.protocol)) for a, kind in kinds.items()]
        if spec.node_port:
            found.append((FrontendKind.NODE_PORT, Address("", spec.node_port, spec.protocol)))
        return found

    def _ours(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        if not addresses:
            return ()
        wanted = self._family is IPFamily.IPV6
        return tuple([a for a in addresses if (":" in a) is wanted])

    def _finish(
        self, name: NamespacedName, conflicts: list[Conflict]
    ) -> Iterator[tuple[ServicePortName, ServicePort]]:
        """Compute the finished ports of one Service; nothing if it is gone."""
        service = self._services.get(name)
        if service is None:
            self._over_limit.discard(name)
            return
        wanted = {(spec.name, spec.protocol) for spec in service.ports}
        found = self._slices.candidates(name, self._node_name, wanted, _most_endpoints(service))
        if found.truncated:
            self._over_limit.add(name)
        else:
            self._over_limit.discard(name)
        for spec in service.ports:
            key = ServicePortName(name.namespace, name.name, spec.name, spec.protocol)
            held = self._held(service, spec, conflicts)
            candidates = found.by_port.get((spec.name, spec.protocol), ())
            yield key, self._service_port(key, service, held, candidates)

    def _held(
        self, service: Service, spec: ServicePortSpec, conflicts: list[Conflict]
    ) -> list[tuple[FrontendKind, Address]]:
        """The addresses that the Service may use; those that others hold become conflicts."""
        held: list[tuple[FrontendKind, Address]] = []
        for kind, address in self._addresses(service, spec):
            winner = self._claims.holder(address)
            if winner == service.name:
                held.append((kind, address))
            elif winner is not None:
                conflicts.append(Conflict(address, winner, service.name))
        return held

    def _service_port(
        self,
        key: ServicePortName,
        service: Service,
        addresses: list[tuple[FrontendKind, Address]],
        candidates: Sequence[Candidate],
    ) -> ServicePort:
        external = any(kind is not FrontendKind.CLUSTER_IP for kind, _ in addresses)
        lists = categorize(
            candidates,
            Place(self._node_name, self._node.zone if self._node else ""),
            uses_cluster=external or not service.internal_policy_local,
            uses_local=service.internal_policy_local
            or (external and service.external_policy_local),
        )
        ranges = self._ours(service.source_ranges)
        balanced: Collection[str] = service.load_balancer_ips
        if len(balanced) > _FEW:
            balanced = frozenset(balanced)
        return ServicePort(
            name=key,
            frontends=tuple(_frontend(kind, a, service, lists, balanced) for kind, a in addresses),
            cluster_endpoints=lists.cluster,
            local_endpoints=lists.local,
            affinity_seconds=service.affinity_seconds,
            # One range of length zero opens the load balancer, as an empty list does.
            source_ranges=() if any(r.endswith("/0") for r in ranges) else ranges,
            health_check_node_port=service.health_check_node_port,
            local_ready=_local_ready(candidates) if service.health_check_node_port else (),
            serving=_serving(candidates) if key.protocol is not Protocol.TCP else (),
            annotations=service.annotations,
        )


def _most_endpoints(service: Service) -> int:
    """How many endpoints each port of a Service may have (``limits.SERVICE_TARGETS``)."""
    addresses = len(service.cluster_ips) + len(service.external_ips)
    addresses += len(service.load_balancer_ips) + 1  # and the node port
    return max(1, SERVICE_TARGETS // (addresses * max(1, len(service.ports))))


def _local_ready(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(sorted({c.address for c in candidates if c.is_local and c.ready}))


def _serving(candidates: Sequence[Candidate]) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(c.address, c.port, c.is_local, c.unplaced)
        for c in candidates
        if c.ready or c.serving
    )


def _frontend(
    kind: FrontendKind,
    address: Address,
    service: Service,
    lists: EndpointLists,
    balanced: Collection[str],
) -> Frontend:
    internal = kind is FrontendKind.CLUSTER_IP
    local = service.internal_policy_local if internal else service.external_policy_local
    if not lists.anywhere:
        verdict = Verdict.REJECT
    elif local and not lists.local:
        verdict = Verdict.DROP
    else:
        verdict = Verdict.FORWARD
    also_load_balancer = kind is not FrontendKind.LOAD_BALANCER and address.address in balanced
    return Frontend(kind, address.address, address.port, local, verdict, also_load_balancer)
