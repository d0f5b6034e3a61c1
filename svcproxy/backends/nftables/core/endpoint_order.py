"""Keeping endpoints at their numbers.

A list is numbered without gaps, and any order balances alike. Sorting it anew at every change
would give half of the endpoints other numbers; here one that stays keeps its number, one that
comes takes the number of one that goes, and if the list becomes shorter, the last ones move
into the gaps.
"""

from collections.abc import Sequence

from msgspec import structs

from svcproxy.model.serviceport import Endpoint, ServicePort


def stable_order(
    wanted: tuple[Endpoint, ...], present: Sequence[Endpoint | None]
) -> tuple[Endpoint, ...]:
    """Put ``wanted`` in the order that differs least from ``present`` (``None``: unknown ones)."""
    missing = dict.fromkeys(wanted)
    kept: list[Endpoint | None] = []
    for endpoint in present:
        if endpoint is not None and endpoint in missing:
            del missing[endpoint]
            kept.append(endpoint)
        else:
            kept.append(None)
    spare = [*missing, *(e for e in kept[len(wanted) :] if e is not None)]
    spare.reverse()
    arranged = [e if e is not None else spare.pop() for e in kept[: len(wanted)]]
    return (*arranged, *reversed(spare))


def with_stable_order(port: ServicePort, known: ServicePort | None) -> ServicePort:
    """A Service port with its lists in the order that ``known`` has them in."""
    if known is None:
        return port
    return with_order(port, known.cluster_endpoints, known.local_endpoints)


def with_order(
    port: ServicePort,
    cluster: Sequence[Endpoint | None] | None,
    local: Sequence[Endpoint | None] | None,
) -> ServicePort:
    """A Service port with its lists in an order that differs least from those given."""
    lists = (
        stable_order(port.cluster_endpoints, cluster or ()),
        stable_order(port.local_endpoints, local or ()),
    )
    if lists == (port.cluster_endpoints, port.local_endpoints):
        return port
    return structs.replace(port, cluster_endpoints=lists[0], local_endpoints=lists[1])
