"""The form that is ``svcproxy trace``, and its answer. Pure."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from svcproxy.explain.core.story_types import Client, Ending, place
from svcproxy.explain.core.trace_document import (
    SkippedEndpoint,
    Trace,
    TracedEndpoint,
    TracedFrontend,
    TracedRules,
)
from svcproxy.limits import UI_QUERY_CHARACTERS, UI_ROWS
from svcproxy.ui.core.frame import Column, Place, badge, notice, page, plain, section, table
from svcproxy.ui.core.html import Content, Html, element, link
from svcproxy.ui.core.words import age, count

_VERDICTS = {
    Ending.DELIVERED: ("Delivered", "good"),
    Ending.REFUSED: ("Refused", "warning"),
    Ending.DROPPED: ("Dropped", "warning"),
    Ending.NOT_A_SERVICE: ("Not a Service", "plain"),
}
_CLIENTS = {
    Client.POD: "from a pod",
    Client.NODE: "from the node itself",
    Client.OUTSIDE: "from outside the cluster",
}
_RULES = 100


def trace_page(
    node: Place, origin: str, target: str, found: Trace | None = None, error: str = ""
) -> bytes:
    """Return the page with the form, and the answer if a packet was asked for.

    Args:
        node: the node.
        origin: the field FROM.
        target: the field TO.
        found: the answer; ``None`` if there is none.
        error: why there is no answer; empty if no packet was asked for.
    """
    return page(
        "Trace a packet",
        node,
        element("h1", "Trace a packet"),
        plain("What this node does with the first packet of a connection. No packet is sent."),
        _form(origin, target),
        _not_traced(error) if error else None,
        _answer(found) if found else None,
    )


def _not_traced(reason: str) -> Html:
    return notice(
        "Not traced", plain(f"{reason[0].upper()}{reason[1:]}."), meaning="warning", heading="h2"
    )


def _form(origin: str, target: str) -> Html:
    return element(
        "form",
        _field("from", "From", origin, "An address, node, or outside"),
        _field("to", "To", target, "default/web:80, 10.96.0.10:53/udp, or node:30080"),
        element("button", "Trace", type="submit"),
        action=link("trace"),
        method="get",
        class_="stacked",
    )


def _field(name: str, label: str, value: str, hint: str) -> Html:
    described = f"{name}-hint"
    return element(
        "div",
        element("label", label, for_=name),
        element(
            "input",
            type="text",
            name=name,
            id=name,
            value=value or None,
            required=True,
            maxlength=UI_QUERY_CHARACTERS,
            autocomplete="off",
            autocapitalize="none",
            spellcheck="false",
            aria_describedby=described,
        ),
        element("div", hint, id=described, class_="hint"),
    )


def _answer(found: Trace) -> Content:
    return (
        _verdict(found),
        section("Steps", element("ol", _steps(found), class_="steps")),
        _endpoints(found.endpoints),
        _skipped(found.not_used),
        _rules(found),
    )


def _verdict(found: Trace) -> Html:
    text, meaning = _VERDICTS[found.verdict]
    differs = found.kernel_differs or bool(found.desired.disagreements)
    return element(
        "div",
        element("h2", text),
        plain(found.reason) if found.reason else None,
        element("p", _agreement(found), class_="badges"),
        class_=f"notice {'bad' if differs else meaning}",
    )


def _agreement(found: Trace) -> Iterator[Html]:
    (family,) = found.node.families
    yield badge(
        family.state[0].upper() + family.state[1:], "good" if family.up_to_date else "warning"
    )
    if found.desired.disagreements:
        yield badge("A defect: svcproxy's rules differ from this answer", "bad")
    if found.kernel is None or found.kernel.agrees is None:
        yield badge("Kernel not traced", "plain")
    elif found.kernel_differs:
        yield badge("The kernel's rules differ", "bad")
    else:
        yield badge("The kernel's rules agree", "good")


def _steps(found: Trace) -> Iterator[Html]:
    packet = found.packet
    source = place(packet.source, packet.source_port) if packet.source_port else packet.source
    target = f"{place(packet.destination, packet.port)}/{packet.protocol.keyword}"
    arrives = f" on {packet.interface}" if packet.interface else ""
    client = f"{_CLIENTS[packet.client]}: {packet.classified}"
    yield _step("Packet", (element("code", f"{source} → {target}"), arrives), client)
    if found.frontend is None:
        yield _step("Frontend", "none", found.reason)
    else:
        yield from _frontend(found.frontend)
    if found.endpoints:
        yield from _source(found.endpoints)
        yield _choose(found)
    if found.connections:
        known = count(len(found.connections), "connection")
        text = "this packet belongs to one, which keeps its endpoint" if found.existing else ""
        yield _step("Connection tracking", f"{known} of this client to this destination", text)
    yield from _disagreements("Rules", found.desired)
    if found.kernel is not None:
        yield from _disagreements("Kernel", found.kernel)


def _step(name: str, text: Content, note: str = "") -> Html:
    return element(
        "li",
        element("span", name, class_="name"),
        element("div", text, element("div", note, class_="hint") if note else None),
    )


def _frontend(frontend: TracedFrontend) -> Iterator[Html]:
    service = frontend.service_port.partition(":")[0]
    shown = element("a", frontend.service_port, href=link("service", name=service))
    yield _step(
        "Frontend", (shown, f", {frontend.type}, policy {frontend.policy}"), frontend.meaning
    )
    if frontend.held:
        yield _step("Held back", frontend.held)
    if frontend.source_ranges:
        yield _step("Admitted", frontend.source_ranges)


def _source(endpoints: Sequence[TracedEndpoint]) -> Iterator[Html]:
    """Say what the endpoints see as the source; a hairpin may differ from the others."""
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for each in endpoints:
        by_reason.setdefault((each.masqueraded, each.because), []).append(each.endpoint)
    for (masqueraded, because), names in by_reason.items():
        where = "" if len(by_reason) == 1 else f" for {', '.join(names[:3])}"
        more = f" and {len(names) - 3:,} more" if where and len(names) > 3 else ""
        done = "masqueraded" if masqueraded else "kept"
        yield _step("Source", f"{done}{where}{more}", because)


def _choose(found: Trace) -> Html:
    number = len(found.endpoints)
    text = "the only endpoint" if number == 1 else f"one of {count(number, 'endpoint')}"
    notes = []
    if found.frontend and found.frontend.scheduler:
        notes.append(f"scheduler {found.frontend.scheduler}")
    if found.frontend and found.frontend.affinity_seconds:
        kept = found.kernel.affinity if found.kernel else ""
        which = f": this client stays with {kept}" if kept else ""
        notes.append(f"affinity for {age(found.frontend.affinity_seconds)}{which}")
    return _step("Choose", text, "; ".join(notes))


def _disagreements(name: str, rules: TracedRules) -> Iterator[Html]:
    if rules.error:
        yield _step(name, "not traced", rules.error)
    for text in rules.disagreements:
        yield _step(name, f"differ: {text}")


def _endpoints(endpoints: Sequence[TracedEndpoint]) -> Html | None:
    if not endpoints:
        return None
    columns = (
        Column("Endpoint", class_="addresses"),
        Column("Probability", number=True),
        Column("Source"),
        Column("Route"),
    )
    rows = (
        (
            each.endpoint,
            _share(each.probability),
            "masqueraded" if each.masqueraded else "kept",
            (
                each.route,
                element("span", "this node", class_="hint") if each.on_this_node else None,
            ),
        )
        for each in endpoints[:UI_ROWS]
    )
    return section(
        "Endpoints",
        table("Endpoints that the connection may get", columns, rows),
        note=_shown(len(endpoints)),
    )


def _share(probability: float) -> str:
    share = Fraction(probability).limit_denominator(1000)
    if abs(share - probability) < 1e-6 and share > 0:
        return str(share)
    return f"{probability:.3%}"


def _skipped(endpoints: Sequence[SkippedEndpoint]) -> Html | None:
    if not endpoints:
        return None
    columns = (Column("Endpoint", class_="addresses"), Column("Because"))
    rows = ((each.endpoint, each.because) for each in endpoints[:UI_ROWS])
    return section(
        "Not used",
        table("Endpoints of the Service that the connection does not get", columns, rows),
        note=_shown(len(endpoints)),
    )


def _shown(number: int) -> str:
    return f"{UI_ROWS} of {number:,}" if number > UI_ROWS else ""


def _rules(found: Trace) -> Html | None:
    rules, title = found.desired, "Rules that match"
    if found.kernel is not None and found.kernel.rules:
        rules, title = found.kernel, "Rules in the kernel that match"
    if not rules.rules:
        return None
    text = "\n".join(rules.rules[:_RULES])
    return section(title, element("pre", element("code", text), tabindex=0))
