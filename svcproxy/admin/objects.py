"""The stored objects as JSON lines, encoded in pieces.

Iterators yield ``None`` for what they examine and skip, so that a piece is short even if it skips
thousands of objects.
"""

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

Objects = Iterator[ApiObject | None]
_Services = Mapping[NamespacedName, Service]


def stored(states: Sequence[DesiredState], kind: Kind) -> Objects:
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
            known = [state.services for state in states]
            return chain.from_iterable(
                _services(services, known[:number]) for number, services in enumerate(known)
            )
        case Kind.ENDPOINT_SLICE:
            return chain.from_iterable(state.slices.all() for state in states)
        case Kind.SERVICE_CIDR:
            return iter(list(states[0].service_cidr_objects.values()) if states else [])
        case Kind.NODE:
            node = states[0].node if states else None
            return iter(() if node is None else (node,))


def of_service(states: Sequence[DesiredState], kind: Kind, service: NamespacedName) -> Objects:
    """Yield the Services that claim an address of ``service``, or its EndpointSlices.

    Args:
        states: the desired state of each family.
        kind: Service or EndpointSlice; there is nothing of another kind.
        service: the name of the Service.
    """
    match kind:
        case Kind.SERVICE:
            return _claimants(states, service)
        case Kind.ENDPOINT_SLICE:
            return chain.from_iterable(state.slices.of(service) for state in states)
        case _:
            return iter(())


def lines(objects: Objects, pacer: Pacer) -> Iterator[bytes]:
    """Yield lines of JSON arrays, each of as many objects as a short piece of work encodes."""
    number = _FIRST_PIECE
    while True:
        piece, seconds = pacer.run(partial(_encoded, objects, number))
        if piece is None:
            return
        yield piece
        if seconds > _PIECE_SECONDS:
            number = max(1, number // 2)
        elif seconds < _PIECE_SECONDS / 2:
            number = min(number * 2, _LARGEST_PIECE)


def _encoded(objects: Objects, number: int) -> bytes | None:
    """Return the next objects as a line, which may be empty; ``None`` at the end."""
    examined = list(islice(objects, number))
    if not examined:
        return None
    piece = [obj for obj in examined if obj is not None]
    return _encoder.encode(piece) + b"\n" if piece else b""


def _services(services: _Services, sent: Sequence[_Services]) -> Objects:
    for service in list(services.values()):
        for earlier in sent:
            if service.name in earlier:
                yield None
                break
        else:
            yield service


def _claimants(states: Sequence[DesiredState], service: NamespacedName) -> Objects:
    seen: set[NamespacedName] = set()
    for state in states:
        for name in state.claimants(service):
            if name in seen:
                yield None
                continue
            seen.add(name)
            yield next((s for one in states if (s := one.services.get(name)) is not None), None)
