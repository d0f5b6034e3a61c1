"""The EndpointSlices of all Services, merged on demand."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from svcproxy.model.names import NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, SliceEndpoint


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint of a Service port, before readiness and topology are considered."""

    address: str
    port: int
    is_local: bool
    node_unknown: bool
    ready: bool
    serving: bool
    terminating: bool
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]


PortKey = tuple[str, Protocol]


class Merged(NamedTuple):
    """The endpoints of a Service by port; ``truncated`` if there were more than allowed."""

    by_port: Mapping[PortKey, list[Candidate]]
    truncated: bool


class SliceCache:
    """Stores slices by Service and merges them when a Service is computed.

    Merging at checkout, and not at every event, keeps a rollout of a large Service cheap: a hundred
    events for one Service cost one merge.
    """

    def __init__(self) -> None:
        self._by_service: dict[NamespacedName, dict[NamespacedName, EndpointSlice]] = {}
        self._service_of: dict[NamespacedName, NamespacedName] = {}

    def update(self, endpoint_slice: EndpointSlice) -> Iterator[NamespacedName]:
        """Store a slice; yield the names of the Services whose endpoints may have changed.

        A slice whose service-name label changed affects two Services.
        """
        previous = self._service_of.get(endpoint_slice.name)
        if previous is not None:
            if previous != endpoint_slice.service:
                yield from self.delete(endpoint_slice.name)
            elif self._by_service[previous][endpoint_slice.name] == endpoint_slice:
                return
        self._service_of[endpoint_slice.name] = endpoint_slice.service
        self._by_service.setdefault(endpoint_slice.service, {})[endpoint_slice.name] = (
            endpoint_slice
        )
        yield endpoint_slice.service

    def delete(self, name: NamespacedName) -> Iterator[NamespacedName]:
        """Remove a slice; yield the name of its Service if the slice was known."""
        service = self._service_of.pop(name, None)
        if service is None:
            return
        slices = self._by_service[service]
        del slices[name]
        if not slices:
            # Otherwise the map would keep the names of all deleted Services (#128928).
            del self._by_service[service]
        yield service

    def of_service(self, service: NamespacedName) -> list[EndpointSlice]:
        """Return the slices of a Service in the order in which they are merged."""
        slices = self._by_service.get(service, {})
        return [slices[name] for name in sorted(slices)]

    def all(self) -> Iterator[EndpointSlice]:
        """Yield all slices. Another thread may change the cache meanwhile, see ``of``."""
        for slices in list(self._by_service.values()):
            yield from list(slices.values())

    def get(self, name: NamespacedName) -> EndpointSlice | None:
        """Return a slice; ``None`` if it is not stored. Only for the thread that changes the cache."""
        service = self._service_of.get(name)
        return None if service is None else self._by_service[service][name]

    def of(self, service: NamespacedName) -> Sequence[EndpointSlice]:
        """Return the slices of a Service. Safe from any thread: a copy is one step."""
        return list(self._by_service.get(service, {}).values())

    def candidates(
        self, service: NamespacedName, node_name: str, ports: Collection[PortKey], limit: int
    ) -> Merged:
        """Merge the slices of a Service to a sorted endpoint list for each port.

        An address and port that occurs twice is one endpoint. That happens while an endpoint moves
        between slices, or if a pod's address is reused before the old pod is gone. An entry that is
        not terminating wins, as in kube-proxy (``endpointslicecache.go``); kube-proxy leaves the
        choice between others open, here ready ones win.

        Args:
            service: the name of the Service.
            node_name: the name of this node.
            ports: the ports of the Service; slices may have others.
            limit: the maximum number of endpoints for each port. Which ones are taken depends on
                the slices only, not on the order of their arrival.
        """
        merged: dict[PortKey, dict[tuple[str, int], Candidate]] = {}
        truncated = False
        for endpoint_slice in self.of_service(service):
            for port in endpoint_slice.ports:
                key = (port.name, port.protocol)
                if key not in ports:
                    continue
                by_target = merged.setdefault(key, {})
                if len(by_target) >= limit:
                    truncated = truncated or bool(endpoint_slice.endpoints)
                    continue
                merge(by_target, endpoint_slice.endpoints, port.port, node_name)
        truncated = truncated or any(len(found) > limit for found in merged.values())
        return Merged(
            {k: [found[t] for t in sorted(found)[:limit]] for k, found in merged.items()}, truncated
        )


def merge(
    by_target: dict[tuple[str, int], Candidate],
    endpoints: Iterable[SliceEndpoint],
    port: int,
    node_name: str,
) -> None:
    """Add the endpoints of a slice to those of a port, by target. Hot path: a large cluster's first sync merges 100,000."""
    for endpoint in endpoints:
        candidate = Candidate(
            endpoint.address,
            port,
            endpoint.node_name == node_name != "",
            not endpoint.node_name,
            endpoint.ready,
            endpoint.serving,
            endpoint.terminating,
            endpoint.zone_hints,
            endpoint.node_hints,
        )
        target = (endpoint.address, port)
        known = by_target.get(target)
        if known is None or _rank(candidate) > _rank(known):
            by_target[target] = candidate


def _rank(candidate: Candidate) -> tuple[bool, bool, bool]:
    return (not candidate.terminating, candidate.ready, candidate.serving)
