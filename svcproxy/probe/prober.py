"""Sends a probe and reports what came back and what the kernel did.

The order matters. First everything is made that ends with the process: namespace, socket, table.
Then the guardian is forked, which knows what packets will leave behind. Only then a packet is sent.
"""

import contextlib
import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.errors import NetlinkError
from svcproxy.probe import affinity, entries, kernel_trace, namespaces, sending
from svcproxy.probe.core.affinity import AffinityEntry, affinity_entries
from svcproxy.probe.core.entry import Entry, Tuple, shown, target
from svcproxy.probe.core.result import (
    LiveRequest,
    LiveResult,
    Outcome,
    SourceKind,
    compared,
)
from svcproxy.probe.core.traces import TraceEvent
from svcproxy.probe.errors import NotSentError
from svcproxy.probe.guardian import Estate, Guardian
from svcproxy.probe.kernel_trace import KernelTrace, NoTraceError
from svcproxy.probe.outside import outside

_VERSIONS = {IPFamily.IPV4: 4, IPFamily.IPV6: 6}
_IPVS_AFFINITY = (
    "the Service has session affinity: IPVS would remember this client until its time-out, and its"
    " memory cannot be deleted; --allow-affinity sends the probe nevertheless"
)
_LEGACY = "legacy"
_NO_EVENTS = "the kernel sent no event: no rule of nf_tables saw the packet"
_IPVS_NOTE = (
    "IPVS keeps its own entry of the connection until that expires by itself: for TCP 10 s after an"
    " answer and a minute without one, for UDP after --ipvs-udp-timeout (by default 5 minutes)"
)


class _Place(NamedTuple):
    """Where the socket is opened.

    Attributes:
        namespace: a descriptor of the network namespace; ``None`` for the node's.
        source: the source address; empty to let the kernel choose.
        tracks: whether the namespace remains, so that its own connection tracking is cleaned.
    """

    namespace: int | None
    source: str
    tracks: bool = False


class _Found(NamedTuple):
    """What was observed of a probe that was sent."""

    answer: sending.Answer
    entry: Entry | None
    trace: list[TraceEvent]
    no_trace: str
    left: list[str]


def probe(request: LiveRequest) -> LiveResult:
    """Send a probe, see ``commands.live.probe``."""
    try:
        _check(request)
        with _place(request) as place:
            sent, found = _run(request, place)
    except NotSentError as error:
        return LiveResult(Outcome.NOT_SENT, str(error))
    result = LiveResult(
        outcome=found.answer.outcome,
        detail=found.answer.detail,
        milliseconds=found.answer.milliseconds,
        source=target(sent.source, sent.source_port),
        endpoint=shown(found.entry.endpoint) if found.entry else "",
        translated=found.entry is not None and found.entry.endpoint != sent.ends[1],
        seen_source=shown(found.entry.seen_source) if found.entry else "",
        masqueraded=found.entry is not None and found.entry.masqueraded,
        trace=kernel_trace.lines(found.trace, request.family),
        no_trace=found.no_trace,
        notes=_notes(request),
        left=found.left,
    )
    return compared(result, request.expected, from_node=place.namespace is None)


def _check(request: LiveRequest) -> None:
    """Refuse malformed addresses, and a probe that would leave something behind."""
    for address in filter(None, (request.destination, request.source)):
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError as error:
            raise NotSentError(f"{address!r:.60} is not an IP address") from error
        if parsed.version != _VERSIONS[request.family]:
            raise NotSentError(f"{address} is not an {request.family} address")
        if parsed.is_multicast or parsed == ipaddress.ip_address("255.255.255.255"):
            raise NotSentError(f"{address} is not the address of one machine")
    if not 0 < request.port < 65536:
        raise NotSentError(f"{request.port} is not a port")
    port = request.service_port
    remembers = request.mode == "ipvs" and port is not None and port.affinity_seconds
    if remembers and not request.allow_affinity:
        raise NotSentError(_IPVS_AFFINITY)


@contextlib.contextmanager
def _place(request: LiveRequest) -> Iterator[_Place]:
    match request.source_kind:
        case SourceKind.NODE:
            yield _Place(None, request.source)
        case SourceKind.OUTSIDE:
            with outside(request) as (namespace, source):
                yield _Place(namespace, source)
        case SourceKind.ADDRESS if namespaces.is_own(request.source):
            yield _Place(None, request.source)
        case SourceKind.POD | SourceKind.ADDRESS:
            with namespaces.opened(request.source) as namespace:
                yield _Place(namespace, request.source, tracks=True)


def _run(request: LiveRequest, place: _Place) -> tuple[Tuple, _Found]:
    made = namespaces.within(place.namespace, lambda: sending.open_socket(request, place.source))
    with contextlib.ExitStack() as stack:
        stack.enter_context(made)
        source, port, *_ = made.getsockname()
        sent = Tuple(
            request.family, request.protocol, source, port, request.destination, request.port
        )
        added = _affinity(request, source)
        lock = stack.enter_context(affinity.locked()) if added else -1
        new = _absent(added)
        trace, no_trace = _start_trace(request, sent)
        if trace is not None:
            stack.callback(trace.close)
        tracking = [place.namespace] if place.tracks and place.namespace is not None else []
        try:
            guardian = Guardian(Estate(sent, tracking, new, lock))
        except OSError as error:
            raise NotSentError(f"cannot start the process that cleans up: {error}") from error
        left: list[str] = []
        try:
            with entries.Births(sent) as births:
                answer = sending.send(made, request)
                entry = _entry(sent, births)
            events = trace.read() if trace is not None else []
            no_trace = no_trace or ("" if events else _NO_EVENTS)
        finally:
            made.close()
            left += guardian.finish()
    return sent, _Found(answer, entry, events, no_trace, left)


def _affinity(request: LiveRequest, source: str) -> tuple[AffinityEntry, ...]:
    """Return the entries of session affinity that the probe may add."""
    if request.service_port is None or request.settings is None:
        return ()
    return affinity_entries(request.mode, request.service_port, request.settings, source)


def _absent(added: tuple[AffinityEntry, ...]) -> tuple[AffinityEntry, ...]:
    """Return those that do not exist yet."""
    try:
        return affinity.absent(added)
    except (OSError, ValueError) as error:
        raise NotSentError(f"cannot read the entries of session affinity: {error}") from error


def _start_trace(request: LiveRequest, sent: Tuple) -> tuple[KernelTrace | None, str]:
    if request.iptables_variant == _LEGACY:
        return None, "the kernel traces rules of nf_tables, but not those of iptables-legacy"
    try:
        return KernelTrace(sent), ""
    except NoTraceError as error:
        return None, str(error)


def _entry(sent: Tuple, births: entries.Births) -> Entry | None:
    try:
        return entries.read(sent) or births.read()
    except NetlinkError:
        return births.read()


def _notes(request: LiveRequest) -> list[str]:
    return [_IPVS_NOTE] if request.mode == "ipvs" else []
