"""Prints Services for people."""

from collections.abc import Iterator, Sequence

from svcproxy.commands.output import Cell, Output, Style
from svcproxy.explain.core.documents import ConnectionCounts
from svcproxy.explain.core.node_summary import NodeSummary
from svcproxy.explain.core.service_detail import duration
from svcproxy.explain.core.service_documents import (
    EndpointInfo,
    FrontendInfo,
    PortDetail,
    PortInfo,
    ServiceDetail,
    ServiceList,
    ServiceSummary,
)

_TYPES = {
    "clusterIP": "cluster IP",
    "externalIP": "external IP",
    "loadBalancerIP": "load-balancer IP",
    "nodePort": "node port",
}
_HEADER = ("ADDRESS", "TYPE", "POLICY", "ENDPOINTS", "NEW/S", "OPEN", "KERNEL")
_ENDPOINTS, _OBJECTS = 1000, 200
"""How many endpoints and kernel objects of a Service port are printed; JSON has all."""

Row = Sequence[str | Cell]


def write_node(output: Output, node: NodeSummary) -> None:
    """Print the state of a node in one line, or in one for each family if they differ."""
    good = all(about.up_to_date and about.kernel_agrees is not False for about in node.families)
    for line in node.lines:
        output.line(Cell(line, Style.STRONG if good else Style.WARNING))


def write_list(output: Output, found: ServiceList) -> None:
    """Print a list of Services: a line for each frontend."""
    write_node(output, found.node)
    output.line()
    rows = [row for service in found.services for row in _service_rows(service)]
    if rows:
        output.table(rows, ("SERVICE", *_HEADER, ""))
        output.line()
    troubled = sum(bool(service.problems) for service in found.services)
    problems = f"{troubled:,} with problems" if troubled else "no problems"
    shown, of = len(found.services), found.selected_of
    plural = "" if of == 1 else "s"
    counted = f"{of:,} Service{plural}" if shown == of else f"{shown:,} of {of:,} Service{plural}"
    output.line(f"{counted}, {problems}")
    _write_notes(output, found.notes)


def _service_rows(service: ServiceSummary) -> Iterator[Row]:
    name = f"{service.namespace}/{service.name}"
    printed: set[str] = set()
    for port in service.ports:
        full = f"{name}:{port.name}" if port.name else name
        held = f"held back: {port.held}" if port.held else ""
        for frontend in port.frontends:
            printed.update((frontend.reason, held))
            words = "; ".join(filter(None, (frontend.reason, held)))
            yield full, *_frontend_cells(port, frontend), Cell(words, Style.BAD)
    for conflict in service.conflicts:
        printed.add(conflict.text)
        yield _problem_row(name, conflict.text)
    differs = any(port.kernel_differences for port in service.ports)
    for problem in service.problems:
        if problem not in printed and not (differs and problem.startswith("the kernel differs")):
            yield _problem_row(name, problem)


def _problem_row(name: str, text: str) -> Row:
    """Return a row for a problem that belongs to no frontend."""
    return name, *("-" for _ in _HEADER), Cell(text, Style.BAD)


def _frontend_cells(port: PortInfo, frontend: FrontendInfo) -> Row:
    kernel = Style.BAD if port.kernel_differences else Style.PLAIN
    kind = _TYPES.get(frontend.type, frontend.type)
    if not frontend.address:
        kind += f" {port.family}"
    if frontend.also_load_balancer:
        kind += ", load-balancer IP"
    counts = frontend.connections or ConnectionCounts()
    return (
        _address(frontend),
        kind,
        frontend.policy,
        f"{frontend.endpoints_used} of {frontend.endpoints_known}",
        "-" if counts.new_per_second is None else f"{counts.new_per_second:.1f}",
        "-" if counts.open is None else str(counts.open),
        Cell(port.kernel_text, kernel),
    )


def _address(frontend: FrontendInfo) -> str:
    """Return where a frontend is served; a node port at all or some addresses of the node."""
    if frontend.address:
        return frontend.text
    served = [_without_length(cidr) for cidr in frontend.node_addresses]
    places = "*" if not served else served[0] if len(served) == 1 else f"{len(served)} ranges"
    return f"{places}:{frontend.port}/{frontend.protocol.keyword}"


def _without_length(cidr: str) -> str:
    """Return a CIDR of one address as the address, in brackets if it is an IPv6 one."""
    address = cidr.removesuffix("/128" if ":" in cidr else "/32")
    return f"[{address}]" if ":" in address else address


def write_detail(output: Output, found: ServiceDetail) -> None:
    """Print one Service: its ports, each with endpoints and kernel objects."""
    write_node(output, found.node)
    output.line()
    output.line(Cell(f"{found.namespace}/{found.name}", Style.STRONG))
    output.table(_properties(found), indent=2)
    for problem in found.problems:
        output.line("  ", Cell(problem, Style.BAD))
    for port in found.ports:
        _write_port(output, port)
    if found.notes:
        output.line()
    _write_notes(output, found.notes)


def _write_notes(output: Output, notes: Sequence[str]) -> None:
    for note in notes:
        output.line(Cell(note, Style.WARNING))


def _properties(found: ServiceDetail) -> Iterator[Row]:
    yield "traffic policy", f"internal {found.internal_policy}, external {found.external_policy}"
    if found.affinity_seconds:
        yield "session affinity", f"ClientIP for {duration(found.affinity_seconds)}"
    if found.source_ranges:
        yield "source ranges", f"{', '.join(found.source_ranges)} (load-balancer IPs only)"
    if found.ignored_external_ips:
        gate = "feature gate AllowServiceExternalIPs=false"
        yield "external IPs", f"{', '.join(found.ignored_external_ips)} not served: {gate}"
    for check in found.health_checks:
        plural = "" if check.local_endpoints == 1 else "s"
        answer = f"{check.status}, {check.local_endpoints} ready endpoint{plural} on this node"
        yield "health check", f"{check.family} port {check.port} answers {answer}"
    for key, value in found.annotations.items():
        yield "annotation", f"{key}: {value}"


def _write_port(output: Output, port: PortDetail) -> None:
    output.line()
    label = f"port {port.name}/{port.protocol.keyword}" if port.name else port.protocol.keyword
    output.line(Cell(f"{label}  {port.family}", Style.STRONG))
    if port.held:
        output.line("  ", Cell(f"held back: {port.held}", Style.BAD))
    output.table(
        [(*_frontend_cells(port, each), Cell(each.reason, Style.BAD)) for each in port.frontends],
        (*_HEADER, ""),
        indent=2,
    )
    for frontend in port.frontends:
        if len(frontend.node_addresses) > 1:
            output.line(f"  node port at addresses in {', '.join(frontend.node_addresses)}")
    output.line()
    if port.endpoints:
        rows = [_endpoint_row(endpoint) for endpoint in port.endpoints[:_ENDPOINTS]]
        output.table(rows, ("ENDPOINT", "NODE", "USED"), indent=2)
        _write_left_out(output, "  ", len(port.endpoints) - _ENDPOINTS)
    else:
        output.line("  no endpoints in EndpointSlices")
    _write_kernel(output, port)


def _endpoint_row(endpoint: EndpointInfo) -> Row:
    address = endpoint.address
    if endpoint.port:
        bracketed = f"[{address}]" if ":" in address else address
        address = f"{bracketed}:{endpoint.port}"
    node = f"{endpoint.node} (this node)" if endpoint.on_this_node else endpoint.node or "unknown"
    if not endpoint.cluster and not endpoint.local:
        return address, node, Cell(f"no: {endpoint.text}", Style.WARNING)
    yes = Cell("yes", Style.GOOD)
    if endpoint.not_local:
        yes = Cell("with policy Cluster only: on another node", Style.GOOD)
        if endpoint.on_this_node:
            yes = Cell(f"with policy Cluster only: {endpoint.not_local}", Style.GOOD)
    elif endpoint.not_cluster:
        yes = Cell(f"with policy Local only: {endpoint.not_cluster}", Style.GOOD)
    elif not endpoint.ready:
        yes = Cell("yes: terminating, and no other is ready", Style.WARNING)
    return address, node, yes


def _write_kernel(output: Output, port: PortDetail) -> None:
    if port.differences:
        output.line()
        output.line("  ", Cell("the kernel differs", Style.BAD))
    for difference in port.differences:
        output.line(f"    {difference.object}: {difference.difference}")
        for sign, text in (("- ", difference.actual), ("+ ", difference.desired)):
            for line in text.splitlines():
                output.line(f"      {sign}{line}")
    if not port.objects:
        return
    output.line()
    read = port.objects_from == "kernel"
    title = "kernel objects" if read else "kernel objects that svcproxy writes (not read)"
    output.line("  ", Cell(title, Style.FAINT))
    for line in port.objects[:_OBJECTS]:
        output.line(f"    {line}")
    _write_left_out(output, "    ", len(port.objects) - _OBJECTS)


def _write_left_out(output: Output, indent: str, count: int) -> None:
    if count > 0:
        output.line(indent, Cell(f"… and {count:,} more: use -o json", Style.FAINT))
