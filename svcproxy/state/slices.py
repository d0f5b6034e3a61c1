"""The EndpointSlices of every Service, merged on demand."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from svcproxy.model.names import NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, SliceEndpoint


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint of one Service port before readiness and topology decide about its use."""

    address: str
    port: int
    is_local: bool
    unplaced: bool
    ready: bool
    serving: bool
    terminating: bool
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]


PortKey = tuple[str, Protocol]


class Merged(NamedTuple):
    """The endpoints of a Service by port, and whether there are more than were asked for."""

    by_port: Mapping[PortKey, list[Candidate]]
    truncated: bool


class SliceCache:
    """Holds slices by Service; merging is done when a Service is looked at, not before.

    Computing at checkout instead of at every event is what keeps a rollout of a large Service
    cheap: a hundred events for one Service cost one merge.
    """

    def __init__(self) -> None:
        self._by_service: dict[NamespacedName, dict[NamespacedName, EndpointSlice]] = {}
        self._service_of: dict[NamespacedName, NamespacedName] = {}

    def update(self, piece: EndpointSlice) -> Iterator[NamespacedName]:
        """Store ``piece``; yield the names of the Services whose endpoints may have changed.

        A slice whose service-name label was rewritten changes two Services.
        """
        previous = self._service_of.get(piece.name)
        if previous is not None:
            if previous != piece.service:
                yield from self.delete(piece.name)
            elif self._by_service[previous][piece.name] == piece:
                return
        self._service_of[piece.name] = piece.service
        self._by_service.setdefault(piece.service, {})[piece.name] = piece
        yield piece.service

    def delete(self, name: NamespacedName) -> Iterator[NamespacedName]:
        """Forget a slice; yield the name of its Service if it was known."""
        service = self._service_of.pop(name, None)
        if service is None:
            return
        pieces = self._by_service[service]
        del pieces[name]
        if not pieces:
            # Or a cluster that churns through Services would grow the map for ever (#128928).
            del self._by_service[service]
        yield service

    def candidates(
        self, service: NamespacedName, node_name: str, ports: Collection[PortKey], most: int
    ) -> Merged:
        """Merge the Service's slices to one sorted endpoint list per port name and protocol.

        An address and port that occurs twice is one endpoint: while an endpoint moves between
        slices, or a pod's address is reused before the old pod is gone, the entry that serves
        best stands for both. That a non-terminating one wins is kube-proxy's rule
        (``endpointslicecache.go``); it leaves the rest undefined, we prefer ready ones.

        Args:
            service: the name of the Service.
            node_name: the name of this node.
            ports: the ports that the Service has; slices may have others.
            most: how many endpoints of a port to take. Which ones they are depends on the slices
                alone, not on the order in which these came.
        """
        merged: dict[PortKey, dict[tuple[str, int], Candidate]] = {}
        pieces = self._by_service.get(service, {})
        truncated = False
        for name in sorted(pieces):
            piece = pieces[name]
            for port in piece.ports:
                key = (port.name, port.protocol)
                if key not in ports:
                    continue
                by_target = merged.setdefault(key, {})
                if len(by_target) >= most:
                    truncated = truncated or bool(piece.endpoints)
                    continue
                _merge(by_target, piece.endpoints, port.port, node_name)
        truncated = truncated or any(len(found) > most for found in merged.values())
        return Merged(
            {k: [found[t] for t in sorted(found)[:most]] for k, found in merged.items()}, truncated
        )


def _merge(
    by_target: dict[tuple[str, int], Candidate],
    endpoints: Iterable[SliceEndpoint],
    port: int,
    node_name: str,
) -> None:
    """Add a slice's endpoints: the hot path, 100,000 of them in a big cluster's first sync."""
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
