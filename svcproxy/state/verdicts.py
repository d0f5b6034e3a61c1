"""Why a frontend does not forward, and why a Service does not have an address, in words."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from svcproxy.model.names import Protocol
from svcproxy.model.objects import Service
from svcproxy.model.serviceport import Frontend, FrontendKind, Verdict
from svcproxy.state.claims import Address, Conflict
from svcproxy.state.desired import DesiredState
from svcproxy.state.slices import Candidate, PortKey


class KnownEndpoints(NamedTuple):
    """The endpoints of a Service port before readiness and topology are considered.

    ``without_port`` is the number of entries in the Service's slices that do not have the port.
    """

    candidates: Sequence[Candidate] = ()
    without_port: int = 0


def known_endpoints(state: DesiredState, service: Service) -> Mapping[PortKey, KnownEndpoints]:
    """Return the endpoints of each port of a Service."""
    merged = state.merged(service).by_port
    slices = state.slices_of(service.name)
    found: dict[PortKey, KnownEndpoints] = {}
    for spec in service.ports:
        key = (spec.name, spec.protocol)
        without = 0
        if key not in merged:
            without = sum(len(each.endpoints) for each in slices)
        found[key] = KnownEndpoints(merged.get(key, ()), without)
    return found


def refusal(frontend: Frontend, known: KnownEndpoints) -> str:
    """Return why packets for a frontend are refused or dropped; empty if they are forwarded.

    Args:
        frontend: the frontend.
        known: the endpoints of its Service port.
    """
    if frontend.verdict is Verdict.FORWARD:
        return ""
    if frontend.verdict is Verdict.DROP:
        which = "internal" if frontend.kind is FrontendKind.CLUSTER_IP else "external"
        ready = " is ready" if any(c.is_local for c in known.candidates) else ""
        return f"DROP: no endpoint on this node{ready} ({which} traffic policy Local)"
    if known.candidates:
        return "REJECT: no endpoint is ready"
    if known.without_port:
        return "REJECT: no EndpointSlice has the port"
    return "REJECT: no endpoints"


def conflict_text(state: DesiredState, conflict: Conflict) -> str:
    """Return which Service serves an address instead of the one that claims it too, and why."""
    taken = f"{address_text(conflict.address)} is served by"
    holder = state.claim(conflict.winner, conflict.address)
    loser = state.claim(conflict.loser, conflict.address)
    if holder is None or loser is None:
        return f"{taken} {conflict.winner}"
    if holder.external is not loser.external:
        return f"{taken} {conflict.winner}, whose cluster IP it is"
    if holder.created != loser.created:
        if not holder.created:
            return f"{taken} {conflict.winner}, which has no creation time and so counts as older"
        return f"{taken} the older Service {conflict.winner}"
    return f"{taken} {conflict.winner}, which is of the same age and precedes it by name"


def address_text(address: Address) -> str:
    """Return an address as ``10.96.0.1:80/tcp``, or ``node port 30080/tcp``."""
    return frontend_text(address.address, address.port, address.protocol)


def frontend_text(address: str, port: int, protocol: Protocol) -> str:
    """Return an address and port as ``[fd00::1]:80/tcp``; ``address`` is empty for node ports."""
    if not address:
        return f"node port {port}/{protocol.keyword}"
    return f"{target(address, port)}/{protocol.keyword}"


def target(address: str, port: int) -> str:
    """Return an address and port as ``10.96.0.1:80`` or ``[fd00::1]:80``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
