"""The overview of a node. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from svcproxy.admin.core.protocol import FamilyStatus, Repair, Status
from svcproxy.explain.core.diff_documents import operations_text
from svcproxy.limits import UI_REPAIRS, UI_ROWS, UI_TROUBLES
from svcproxy.ui.core.chart import latency_chart
from svcproxy.ui.core.frame import (
    Column,
    Place,
    anchor,
    badge,
    facts,
    lines,
    page,
    plain,
    section,
    table,
)
from svcproxy.ui.core.html import Content, Html, element, fragment, link
from svcproxy.ui.core.node import Comparison, Health, Snapshot
from svcproxy.ui.core.rows import ServiceRow, Trouble, in_trouble
from svcproxy.ui.core.words import age, ago, count, duration, moment

_MEANINGS = {
    Trouble.HELD: "bad",
    Trouble.DIFFERS: "bad",
    Trouble.CONFLICT: "warning",
    Trouble.REFUSED: "warning",
    Trouble.DROPPED: "plain",
    Trouble.OTHER: "warning",
}
_FRONTENDS = 3
_PROBLEMS = 3
_TROUBLE_ONLY = "trouble"


def overview(now: Snapshot, health: Health, query: Mapping[str, str]) -> bytes:
    """Return the overview.

    Args:
        now: what is known of the node.
        health: what ``/healthz`` answers.
        query: the parameters: ``find`` a text to search for, ``only`` is ``trouble`` for Services
            in trouble only, ``page`` the number of the page of the list.
    """
    troubled = in_trouble(now.rows)
    return page(
        "Overview",
        Place(now.status.node, now.status.mode, "./"),
        _summary(now, health, len(troubled)),
        _troubles(troubled),
        _latency(now),
        _repairs(now),
        _services(now, query),
    )


def _summary(now: Snapshot, health: Health, troubled: int) -> Html:
    status = now.status
    return element(
        "section",
        element(
            "div",
            element("h1", status.node),
            element("p", _verdicts(now, health, troubled), class_="badges"),
            class_="title",
        ),
        facts(
            (
                ("Mode", _mode(status)),
                ("Version", status.version),
                ("Running for", age(max(0.0, status.now - status.started))),
                *_family_facts(status),
                ("Kernel", _kernel(now.comparison, status.now)),
                ("Services", f"{len(now.rows):,}"),
            )
        ),
        _versions(status),
        class_="summary",
    )


def _mode(status: Status) -> str:
    variant = f" ({status.iptables_variant})" if status.iptables_variant else ""
    return f"{status.mode}{variant}"


def _verdicts(now: Snapshot, health: Health, troubled: int) -> Iterator[Html]:
    yield _health_badge(health)
    families = now.status.families.values()
    pending = sum(family.pending for family in families)
    failing = [family.failing for family in families if family.failing]
    if failing:
        yield badge("Sync fails", "bad")
    elif not families or not all(family.synced for family in families):
        yield badge("Waiting for the first sync", "warning")
    elif pending:
        yield badge(f"{count(pending, 'change')} pending", "warning")
    else:
        yield badge("Up to date", "good")
    if now.comparison.problem:
        yield badge("Kernel not compared", "plain")
    elif now.comparison.differences:
        yield badge(f"{count(now.comparison.differences, 'difference')} in the kernel", "bad")
    elif now.comparison.at:
        yield badge("Kernel agrees", "good")
    if troubled:
        yield badge(f"{count(troubled, 'Service')} in trouble", "warning")


def _health_badge(health: Health) -> Html:
    if health.stalled:
        return badge(f"Unhealthy: {', '.join(health.stalled)} hangs", "bad")
    if not health.working:
        return badge("Unhealthy: a change waits too long", "bad")
    if not health.eligible:
        return badge("Not eligible: the node is being removed", "warning")
    return badge("Healthy", "good") if health.fit else badge("Unhealthy", "bad")


def _family_facts(status: Status) -> Iterator[tuple[str, Content]]:
    for family, about in status.families.items():
        yield family.value, _sync_state(about, status.now)


def _sync_state(about: FamilyStatus, now: float) -> str:
    if about.failing:
        return f"failing: {about.failing}"
    synced = f"synced {ago(about.synced, now)}" if about.synced else "not synced yet"
    return f"{synced}, {about.pending:,} pending" if about.pending else synced


def _kernel(comparison: Comparison, now: float) -> Content:
    if comparison.problem:
        return comparison.problem
    if not comparison.at:
        return None
    found = count(comparison.differences, "difference") if comparison.differences else "agrees"
    return f"{found}, read {ago(comparison.at, now)}"


def _versions(status: Status) -> Content:
    """Return the resource versions; manifests have none."""
    entries = [
        (kind.value, watch.resource_version)
        for kind, watch in status.watches.items()
        if watch.resource_version
    ]
    if not entries:
        return None
    return element(
        "details",
        element("summary", "Resource versions"),
        facts(entries, class_="facts versions"),
    )


def _troubles(troubled: Sequence[ServiceRow]) -> Html | None:
    if not troubled:
        return None
    rows = (
        (_service_link(row), _trouble_badges(row), _problems(row)) for row in troubled[:UI_TROUBLES]
    )
    columns = (Column("Service"), Column("Trouble"), Column("What happens"))
    more = None
    if len(troubled) > UI_TROUBLES:
        target = link("./", "services", only=_TROUBLE_ONLY)
        more = element("p", anchor(target, f"All {len(troubled):,} Services in trouble"))
    return section(
        "Services in trouble",
        table("Services in trouble, the most serious first", columns, rows, class_="troubles"),
        more,
    )


def _trouble_badges(row: ServiceRow) -> Content:
    if not row.troubles:
        return element("span", "serves", class_="quiet")
    return [badge(trouble.value, _MEANINGS[trouble]) for trouble in row.troubles]


def _problems(row: ServiceRow) -> Html:
    rest = len(row.problems) - _PROBLEMS
    more = element("div", f"and {rest:,} more", class_="hint") if rest > 0 else None
    return fragment(lines(row.problems[:_PROBLEMS]), more)


def _service_link(row: ServiceRow) -> Html:
    namespace, _, name = row.name.partition("/")
    shown = element("span", f"{namespace}/", class_="namespace")
    return anchor(link("service", name=row.name), shown, name)


def _latency(now: Snapshot) -> Html:
    if not now.latencies:
        return section("Latency of changes", plain("No change has been synced yet."))
    syncs = sum(latency.syncs for latency in now.latencies if latency.stage == "total")
    return section(
        "Latency of changes",
        latency_chart(now.latencies),
        note=f"{count(syncs, 'sync', 'syncs')} since the start",
    )


def _repairs(now: Snapshot) -> Html:
    title = "Repairs"
    if not now.repairs:
        return section(title, plain("No other program has changed the rules since the start."))
    columns = (
        Column("When"),
        Column("Changed by"),
        Column("Family"),
        Column("Restored"),
        Column("Noticed by"),
        Column("Took", number=True),
    )
    rows = (_repair(repair, now.status.now) for repair in reversed(now.repairs[-UI_REPAIRS:]))
    return section(
        title,
        table("The last repairs, the latest first", columns, rows, class_="repairs"),
        note=f"{now.repaired:,} since the start",
    )


def _repair(repair: Repair, now: float) -> tuple[Content, ...]:
    return (
        element("time", ago(repair.at, now), title=moment(repair.at)),
        _culprit(repair),
        repair.family.value,
        operations_text(repair.operations),
        "event of the kernel" if repair.reported else "resync",
        duration(repair.seconds),
    )


def _culprit(repair: Repair) -> Content:
    if not repair.process:
        return element("span", "unknown", class_="quiet")
    pid = element("span", f"pid {repair.pid}", class_="hint") if repair.pid else None
    return (element("code", repair.process), pid)


def _services(now: Snapshot, query: Mapping[str, str]) -> Html:
    find = query.get("find", "").strip()
    only = _TROUBLE_ONLY if query.get("only") == _TROUBLE_ONLY else ""
    found = in_trouble(now.rows) if only else now.rows
    if find:
        found = [row for row in found if row.matches(find.lower())]
    pages = max(1, -(-len(found) // UI_ROWS))
    at = min(_number(query.get("page", "")), pages)
    shown = found[(at - 1) * UI_ROWS : at * UI_ROWS]
    return section(
        "Services",
        _search(find, only),
        _service_table(shown) if shown else plain("No Service matches."),
        _pager(at, pages, find, only),
        id_="services",
        note=_found(len(found), len(now.rows)),
    )


def _found(found: int, total: int) -> str:
    return count(total, "Service") if found == total else f"{found:,} of {count(total, 'Service')}"


def _number(text: str) -> int:
    return max(1, int(text)) if text.isdecimal() and text.isascii() and len(text) < 7 else 1


def _search(find: str, only: str) -> Html:
    box = element(
        "input",
        type="search",
        name="find",
        id="find",
        value=find or None,
        maxlength=256,
        autocomplete="off",
        spellcheck="false",
    )
    check = element(
        "input", type="checkbox", name="only", id="only", value=_TROUBLE_ONLY, checked=bool(only)
    )
    return element(
        "form",
        element("label", "Name or address", for_="find"),
        box,
        element("label", check, " in trouble only", for_="only", class_="check"),
        element("button", "Search", type="submit"),
        anchor(link("./", "services"), "Show all") if find or only else None,
        action=link("./"),
        method="get",
        role="search",
    )


def _service_table(rows: Sequence[ServiceRow]) -> Html:
    columns = (
        Column("Service"),
        Column("Addresses", class_="addresses"),
        Column("Endpoints", number=True),
        Column("State"),
    )
    cells = ((_service_link(r), _frontends(r), _used(r), _trouble_badges(r)) for r in rows)
    return table("Services of this node", columns, cells, class_="services")


def _used(row: ServiceRow) -> str:
    return f"{row.used:,}" if row.used == row.known else f"{row.used:,} of {row.known:,}"


def _frontends(row: ServiceRow) -> Content:
    shown = row.frontends[:_FRONTENDS]
    rest = len(row.frontends) - len(shown)
    more = element("div", f"and {rest:,} more", class_="hint") if rest else None
    return fragment(lines(shown), more)


def _pager(at: int, pages: int, find: str, only: str) -> Html | None:
    if pages == 1:
        return None

    def to(number: int, text: str, rel: str) -> Html:
        if not 1 <= number <= pages:
            return element("span", text, class_="quiet")
        target = link("./", "services", find=find, only=only, page=number if number > 1 else None)
        return element("a", text, href=target, rel=rel)

    return element(
        "nav",
        to(at - 1, "← Previous", "prev"),
        element("span", f"Page {at:,} of {pages:,}"),
        to(at + 1, "Next →", "next"),
        class_="pager",
        aria_label="Pages of Services",
    )
