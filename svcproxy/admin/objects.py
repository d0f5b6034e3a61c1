"""The stored objects as JSON lines, encoded in pieces."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

import msgspec

from svcproxy.admin.pacing import Pacer
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, Service
from svcproxy.state.desired import DesiredState

_PIECE_SECONDS = 0.0002
_FIRST_PIECE = 16
_LARGEST_PIECE = 512

_encoder = msgspec.json.Encoder()


def stored(states: Sequence[DesiredState], kind: Kind) -> Iterator[ApiObject]:
    """Yield the objects of a kind that the loops have stored, each once.

    The loops change their states meanwhile. References are copied in one step each, so an object is
    sent in one of the states that it had during the answer.

    Args:
        states: the desired state of each family. EndpointSlices belong to one; a Service may have
            addresses of both.
        kind: the kind.
    """
    match kind:
        case Kind.SERVICE:
            return chain.from_iterable(
                _services(state.services, [other.services for other in states[:number]])
                for number, state in enumerate(states)
            )
        case Kind.ENDPOINT_SLICE:
            return chain.from_iterable(state.slices.all() for state in states)
        case Kind.SERVICE_CIDR:
            return iter(list(states[0].service_cidr_objects.values()) if states else [])
        case Kind.NODE:
            node = states[0].node if states else None
            return iter(() if node is None else (node,))


def of_service(
    states: Sequence[DesiredState], kind: Kind, service: NamespacedName
) -> Iterator[ApiObject]:
    """Yield the Services that claim an address of ``service``, or its EndpointSlices.

    Args:
        states: the desired state of each family.
        kind: Service or EndpointSlice; there is nothing of another kind.
        service: the name of the Service.
    """
    if kind is Kind.ENDPOINT_SLICE:
        return chain.from_iterable(state.slices.of(service) for state in states)
    if kind is not Kind.SERVICE:
        return iter(())
    names = sorted({name for state in states for name in state.claimants(service)})
    found = {name: _first(states, name) for name in names}
    return iter([obj for obj in found.values() if obj is not None])


def _first(states: Sequence[DesiredState], name: NamespacedName) -> Service | None:
    found = (state.services.get(name) for state in states)
    return next((obj for obj in found if obj is not None), None)


def _services(
    services: Mapping[NamespacedName, Service],
    sent: Sequence[Mapping[NamespacedName, Service]],
) -> Iterator[Service]:
    for service in list(services.values()):
        if not any(service.name in earlier for earlier in sent):
            yield service


def lines(objects: Iterator[ApiObject], pacer: Pacer) -> Iterator[bytes]:
    """Yield lines of JSON arrays, each of as many objects as a short piece of work encodes."""
    number = _FIRST_PIECE
    while True:
        piece, seconds = pacer.run(partial(_encoded, objects, number))
        if not piece:
            return
        yield piece
        if seconds > _PIECE_SECONDS:
            number = max(1, number // 2)
        elif seconds < _PIECE_SECONDS / 2:
            number = min(number * 2, _LARGEST_PIECE)


def _encoded(objects: Iterator[ApiObject], number: int) -> bytes:
    """Return the next objects as a line; nothing if there are none."""
    piece = list(islice(objects, number))
    return _encoder.encode(piece) + b"\n" if piece else b""
