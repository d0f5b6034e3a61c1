"""The page of one Service. Pure."""

from collections.abc import Iterator, Sequence

from svcproxy.explain.core.service_documents import (
    EndpointInfo,
    FrontendInfo,
    PortDetail,
    ServiceDetail,
)
from svcproxy.limits import UI_ROWS
from svcproxy.ui.core.frame import (
    Column,
    Place,
    anchor,
    badge,
    facts,
    notice,
    page,
    plain,
    section,
    table,
)
from svcproxy.ui.core.html import Content, Html, element, link
from svcproxy.ui.core.words import age, count

_KINDS = {
    "clusterIP": "cluster IP",
    "externalIP": "external IP",
    "loadBalancerIP": "load-balancer IP",
    "nodePort": "node port",
}
_VERDICTS = {
    "forward": ("forwards", "good"),
    "reject": ("refuses", "warning"),
    "drop": ("drops", "plain"),
}
_LINES = 4 * UI_ROWS


def service_page(service: ServiceDetail) -> bytes:
    """Return the page of a Service."""
    name = f"{service.namespace}/{service.name}"
    return page(
        name,
        Place(service.node.node, service.node.mode),
        element("p", anchor(link("./", "services"), "← All Services"), class_="back"),
        _summary(service),
        _problems(service),
        _frontends(service),
        (_port(port) for port in service.ports),
    )


def _summary(service: ServiceDetail) -> Html:
    checks = (
        element(
            "div",
            f"{check.port} ({check.family}): answers {check.status},"
            f" {count(check.local_endpoints, 'endpoint')} here",
        )
        for check in service.health_checks
    )
    return element(
        "section",
        element(
            "div",
            element(
                "h1",
                element("span", f"{service.namespace}/", class_="namespace"),
                service.name,
            ),
            element("p", _verdict(service), class_="badges"),
            class_="title",
        ),
        facts(
            (
                ("Internal policy", service.internal_policy),
                ("External policy", service.external_policy),
                ("Affinity", _affinity(service)),
                ("Source ranges", _several(service.source_ranges)),
                ("Health-check port", list(checks) if service.health_checks else None),
                *service.annotations.items(),
            )
        ),
        class_="summary",
    )


def _verdict(service: ServiceDetail) -> Iterator[Html]:
    if service.problems:
        yield badge(count(len(service.problems), "problem"), "warning")
    else:
        yield badge("Serves", "good")
    known = [port.kernel_differences for port in service.ports]
    if None not in known:
        agrees = not any(known)
        yield badge("Kernel agrees" if agrees else "Kernel differs", "good" if agrees else "bad")


def _affinity(service: ServiceDetail) -> str:
    return f"client IP, {age(service.affinity_seconds)}" if service.affinity_seconds else "none"


def _several(texts: Sequence[str]) -> Content:
    if len(texts) > UI_ROWS:
        return f"{', '.join(texts[:UI_ROWS])} and {len(texts) - UI_ROWS:,} more"
    return ", ".join(texts)


def _problems(service: ServiceDetail) -> Html | None:
    if not service.problems:
        return None
    shown = service.problems[:UI_ROWS]
    items = element("ul", (element("li", text) for text in shown))
    return section("Problems", element("div", items, class_="notice warning"))


def _frontends(service: ServiceDetail) -> Html:
    found = [(port, frontend) for port in service.ports for frontend in port.frontends]
    columns = (
        Column("Address", class_="addresses"),
        Column("Port"),
        Column("Kind"),
        Column("Policy"),
        Column("Endpoints", number=True),
        Column("Verdict"),
    )
    rows = (_frontend(port, frontend) for port, frontend in found[:UI_ROWS])
    return section(
        "Addresses",
        table("Addresses of the Service", columns, rows) if found else plain("It has none here."),
        _rest(len(found)),
    )


def _frontend(port: PortDetail, frontend: FrontendInfo) -> tuple[Content, ...]:
    text, meaning = _VERDICTS.get(frontend.verdict, (frontend.verdict, "plain"))
    kind = _KINDS.get(frontend.type, frontend.type)
    return (
        frontend.text,
        port.name or "-",
        f"{kind}, {port.family}" if not frontend.address else kind,
        frontend.policy,
        f"{frontend.endpoints_used:,} of {frontend.endpoints_known:,}",
        (
            badge(text, meaning),
            element("div", frontend.reason, class_="hint") if frontend.reason else None,
        ),
    )


def _port(port: PortDetail) -> Html:
    name = f"{port.name} · " if port.name else ""
    used = sum(endpoint.cluster or endpoint.local for endpoint in port.endpoints)
    return section(
        f"{name}{port.protocol} over {port.family}",
        plain(f"Held back: {port.held}") if port.held else None,
        _endpoints(port.endpoints),
        _differences(port),
        _objects(port),
        note=f"{used:,} of {count(len(port.endpoints), 'endpoint')} used",
    )


def _endpoints(endpoints: Sequence[EndpointInfo]) -> Content:
    if not endpoints:
        return plain("No EndpointSlice lists an endpoint.")
    columns = (
        Column("Endpoint", class_="addresses"),
        Column("Node"),
        Column("Used"),
        Column("Because"),
        Column("EndpointSlice"),
    )
    ordered = sorted(endpoints, key=lambda endpoint: not (endpoint.cluster or endpoint.local))
    rows = map(_endpoint, ordered[:UI_ROWS])
    return (table("Endpoints, those in use first", columns, rows), _rest(len(endpoints)))


def _endpoint(endpoint: EndpointInfo) -> tuple[Content, ...]:
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    node = endpoint.node or element("span", "unknown", class_="quiet")
    used = endpoint.cluster or endpoint.local
    return (
        f"{address}:{endpoint.port}" if endpoint.port else address,
        (node, element("span", "this node", class_="hint") if endpoint.on_this_node else None),
        badge("used", "good") if used else badge("not used", "plain"),
        _because(endpoint),
        endpoint.slice.partition("/")[2],
    )


def _because(endpoint: EndpointInfo) -> Content:
    if not (endpoint.cluster or endpoint.local):
        return endpoint.text
    state = "serves while terminating" if endpoint.terminating else "ready"
    partly = [
        element("div", f"not for policy {policy}: {text}", class_="hint")
        for policy, text in (("Cluster", endpoint.not_cluster), ("Local", endpoint.not_local))
        if text
    ]
    return (state, partly)


def _differences(port: PortDetail) -> Content:
    if not port.differences:
        return None
    columns = (Column("Object"), Column("Difference"), Column("Desired"), Column("In the kernel"))
    rows = (
        (
            each.object,
            badge(each.difference, "bad"),
            element("code", each.desired or "-"),
            element("code", each.actual or "-"),
        )
        for each in port.differences[:UI_ROWS]
    )
    return (
        element("h3", "Differences"),
        table("Kernel objects that differ from the desired state", columns, rows),
        _rest(len(port.differences)),
    )


def _objects(port: PortDetail) -> Content:
    if not port.objects:
        return None
    lines = port.objects[:_LINES]
    title = "In the kernel" if port.objects_from == "kernel" else "What svcproxy writes"
    code = element("pre", element("code", "\n".join(lines)), tabindex=0)
    return (element("h3", title), code, _rest(len(port.objects), _LINES))


def _rest(number: int, shown: int = UI_ROWS) -> Html | None:
    """Return how many entries are not shown; nothing if all are."""
    if number <= shown:
        return None
    return element(
        "p", f"{number - shown:,} more are not shown; svcproxy show lists all.", class_="note"
    )


def unknown_service(node: Place, text: str) -> bytes:
    """Return the page for a Service that the node does not serve.

    Args:
        node: the node.
        text: why there is no such Service.
    """
    shown = f"{text[0].upper()}{text[1:]}." if text else "Name a Service."
    return page(
        "Unknown Service",
        node,
        element("p", anchor(link("./", "services"), "← All Services"), class_="back"),
        notice("Unknown Service", plain(shown), meaning="warning"),
    )
