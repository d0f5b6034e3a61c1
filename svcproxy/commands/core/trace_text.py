"""The document of ``svcproxy trace`` as text: numbered steps, and a last word. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

from svcproxy.explain.core.story_types import Client, Ending, place
from svcproxy.explain.core.trace_document import (
    UNREACHABLE,
    ProbeReport,
    Trace,
    TracedEndpoint,
    TracedRules,
)

Row = tuple[str, str]
"""The name of a step, or an empty text for its further lines; and a line."""

_SHOWN = 16
_SHOWN_CONNECTIONS = 5
_HASHING = {"sh": "source", "dh": "destination", "mh": "source"}
_FINAL = {
    Ending.DELIVERED: "DELIVERED",
    Ending.REFUSED: "REFUSED",
    Ending.DROPPED: "DROPPED",
    Ending.NOT_A_SERVICE: "NOT A SERVICE",
}
_CLIENTS = {Client.POD: "from a pod", Client.NODE: "from the node", Client.OUTSIDE: "from outside"}


def steps(document: Trace, *, verbose: bool = False) -> Iterator[Row]:
    """Yield the steps of a trace as lines.

    Args:
        document: the trace.
        verbose: whether to add the rules that match, and all endpoints.
    """
    yield "packet", _packet(document)
    if document.frontend is None:
        yield "frontend", f"none: {document.reason}"
    else:
        yield from _frontend(document)
    yield from _endpoints(document, verbose=verbose)
    yield from _connections(document)
    desired, kernel = document.desired, document.kernel
    same = kernel is not None and kernel.rules == desired.rules
    whose = "svcproxy's own rules, and the kernel's" if same else "svcproxy's own rules"
    yield from _rules("rules", whose, desired, verbose=verbose)
    if kernel is not None:
        yield from _rules("kernel", "the kernel's rules", kernel, verbose=verbose and not same)
    if document.live is not None:
        yield from _live(document.live, verbose=verbose)


def final(document: Trace) -> str:
    """Return the last line: the verdict, and what speaks against it."""
    word = _FINAL[document.verdict]
    if document.reason:
        word += f": {document.reason}"
    lost = [each.endpoint for each in document.endpoints if each.route == UNREACHABLE]
    if lost:
        which = lost[0] if len(lost) == 1 else f"{len(lost)} of {len(document.endpoints)} endpoints"
        word += f"; but the node has no route to {which}"
    if document.kernel_differs:
        word += "; but the kernel differs"
    if document.live is not None and document.probe_differs:
        word += f"; but the probe: {document.live.disagreement}"
    return word


def _packet(document: Trace) -> str:
    packet = document.packet
    source = packet.source
    if packet.source_port:
        source = place(source, packet.source_port)
    target = f"{place(packet.destination, packet.port)}/{packet.protocol.keyword}"
    arrives = f" on {packet.interface}" if packet.interface else ""
    return f"{source} -> {target}{arrives}   {_CLIENTS[packet.client]} ({packet.classified})"


def _frontend(document: Trace) -> Iterator[Row]:
    frontend = document.frontend
    assert frontend is not None, "the caller checks it"
    yield "frontend", f"{frontend.service_port}, {frontend.type}, policy {frontend.policy}"
    if frontend.policy == "Local":
        yield "", frontend.meaning
    if frontend.held:
        yield "", f"held back: {frontend.held}"
    if frontend.source_ranges:
        yield "admitted", frontend.source_ranges
    if document.endpoints:
        yield from _source(document.endpoints)


def _source(endpoints: Sequence[TracedEndpoint]) -> Iterator[Row]:
    """Say whether the source is kept, with the exceptions: hairpins and endpoints on this node."""
    found = Counter((each.masqueraded, each.because) for each in endpoints)
    # The usual case first; of equally frequent ones, the first is that of another endpoint.
    usual, *others = sorted(found, key=lambda one: (-found[one], one[1].startswith("hairpin")))
    yield "source", f"{_done(usual[0])}: {usual[1]}"
    for masqueraded, because in others:
        names = [e.endpoint for e in endpoints if e.because == because]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        which = f"{', '.join(names[:_SHOWN])}{more}"
        yield "", f"{_done(masqueraded)} for {which}: {because}"


def _done(masqueraded: bool) -> str:  # noqa: FBT001 - the value that it names
    return "masqueraded" if masqueraded else "kept"


def _endpoints(document: Trace, *, verbose: bool) -> Iterator[Row]:
    endpoints, frontend = document.endpoints, document.frontend
    if endpoints and frontend is not None:
        yield "choose", _how(document)
        shown = endpoints if verbose else endpoints[:_SHOWN]
        width = max(len(each.endpoint) for each in shown)
        for each in shown:
            here = "this node" if each.on_this_node else ""
            yield "", f"{each.endpoint:{width}}  {here:9}  {each.route}".rstrip()
        if len(shown) < len(endpoints):
            yield "", f"and {len(endpoints) - len(shown)} more (-v)"
    skipped = document.not_used if verbose else document.not_used[:_SHOWN]
    for number, other in enumerate(skipped):
        yield "" if number else "not used", f"{other.endpoint}  {other.because}"
    if len(skipped) < len(document.not_used):
        yield "", f"and {len(document.not_used) - len(skipped)} more (-v)"


def _how(document: Trace) -> str:
    frontend, endpoints = document.frontend, document.endpoints
    assert frontend is not None, "the caller checks it"
    share = Fraction(endpoints[0].probability).limit_denominator(100_000)
    text = f"{share} each" if len(endpoints) > 1 else "the only endpoint"
    hashed = _HASHING.get(frontend.scheduler)
    if hashed:
        text = f"by a hash of the {hashed} ({frontend.scheduler})"
    elif frontend.scheduler:
        text += f", scheduler {frontend.scheduler}"
    if frontend.affinity_seconds:
        kept = document.kernel.affinity if document.kernel else ""
        text += f", affinity for {frontend.affinity_seconds} s"
        text += f": this client stays with {kept}" if kept else ""
    return text


def _connections(document: Trace) -> Iterator[Row]:
    known = document.connections
    if not known:
        return
    if document.existing:
        (one,) = (c for c in known if c.source_port == document.packet.source_port)
        where = one.endpoint or "no endpoint: it is not translated"
        yield "conntrack", f"an existing connection: it stays with {where}, no rule decides"
        return
    label = "conntrack"
    for each in known[:_SHOWN_CONNECTIONS]:
        yield label, f"open: port {each.source_port} -> {each.endpoint or 'not translated'}"
        label = ""
    if len(known) > _SHOWN_CONNECTIONS:
        yield "", f"and {len(known) - _SHOWN_CONNECTIONS} more (-o json)"


def _rules(label: str, whose: str, rules: TracedRules, *, verbose: bool) -> Iterator[Row]:
    """Report rules that do something else, and with ``verbose`` all that match."""
    if rules.error:
        yield label, f"not traced: {rules.error}"
    for text in rules.disagreements:
        if label == "kernel":
            yield label, f"kernel differs: {text}"
        else:
            yield label, f"a defect of svcproxy, please report it: its rules differ: {text}"
        label = ""
    if verbose and rules.rules:
        yield label, f"{whose}:"
        yield from (("", line) for line in rules.rules)


def _live(live: ProbeReport, *, verbose: bool) -> Iterator[Row]:
    where = f"-> {live.endpoint}  " if live.endpoint else ""
    after = f" after {live.milliseconds:.2f} ms" if live.milliseconds else ""
    agrees = "" if live.agrees is None else ", as predicted" * live.agrees
    yield "live", f"{where}{live.detail or live.outcome}{after}{agrees}"
    yield from (("", text) for text in (*live.notes, *live.left))
    if live.disagreement:
        yield "", f"differs: {live.disagreement}"
    if live.trace and verbose:
        yield from (("", line) for line in live.trace)
    elif live.trace:
        yield "", f"the kernel's own trace has {len(live.trace)} steps (-v)"
    if live.no_trace:
        yield "", f"no kernel trace: {live.no_trace}"
