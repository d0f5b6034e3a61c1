"""Keeps the endpoints of a list at their numbers when the list changes.

Lists are numbered without gaps, and every order balances alike. Sorting a list at each change
would renumber half of its endpoints. Instead, an endpoint that stays keeps its number, a new one
takes the number of one that is removed, and the last endpoints of a list that shrinks fill the
gaps.
"""

from collections.abc import Sequence

from msgspec import structs

from svcproxy.model.serviceport import Endpoint, ServicePort


def stable_order(
    wanted: tuple[Endpoint, ...], present: Sequence[Endpoint | None]
) -> tuple[Endpoint, ...]:
    """Return ``wanted`` in the order that changes the fewest numbers.

    Args:
        wanted: the endpoints of the new list.
        present: the endpoints of the old list by number; ``None`` for unknown ones.
    """
    missing = dict.fromkeys(wanted)
    kept: list[Endpoint | None] = []
    for endpoint in present:
        if endpoint is not None and endpoint in missing:
            del missing[endpoint]
            kept.append(endpoint)
        else:
            kept.append(None)
    unplaced = [*missing, *(e for e in kept[len(wanted) :] if e is not None)]
    unplaced.reverse()
    ordered = [e if e is not None else unplaced.pop() for e in kept[: len(wanted)]]
    return (*ordered, *reversed(unplaced))


def with_stable_order(port: ServicePort, known: ServicePort | None) -> ServicePort:
    """Return a Service port whose endpoints keep the numbers that they have in ``known``."""
    if known is None:
        return port
    return in_order(port, known.cluster_endpoints, known.local_endpoints)


def in_order(
    port: ServicePort,
    cluster: Sequence[Endpoint | None] | None,
    local: Sequence[Endpoint | None] | None,
) -> ServicePort:
    """Return a Service port whose endpoints keep the numbers that they have in two lists.

    Args:
        port: the Service port.
        cluster: the present order of its cluster endpoints; ``None`` if there is none.
        local: the present order of its local endpoints; ``None`` if there is none.
    """
    lists = (
        stable_order(port.cluster_endpoints, cluster or ()),
        stable_order(port.local_endpoints, local or ()),
    )
    if lists == (port.cluster_endpoints, port.local_endpoints):
        return port
    return structs.replace(port, cluster_endpoints=lists[0], local_endpoints=lists[1])
