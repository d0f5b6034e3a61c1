"""The lines of ``svcproxy top`` for people."""

from collections.abc import Iterator

from svcproxy.commands.core.top_documents import Top, TopFrontend

_NUMBERS = 36
"""The width of the four columns of numbers."""
_LEAST_NAME = 20


def table(top: Top, width: int, rows: int) -> Iterator[str]:
    """Yield the lines of a sample.

    Args:
        top: the sample.
        width: how many characters a line may have.
        rows: how many lines there may be, at least 4.
    """
    yield from (line[:width] for line in _limited(top, width, rows))


def _limited(top: Top, width: int, rows: int) -> Iterator[str]:
    notes = list(_notes(top))
    left = max(2, rows - 3 - len(notes))
    yield f"{top.node}  {top.mode}  {top.seconds:.1f} s"
    longest = max((len(_name(row)) for row in top.frontends), default=0)
    name_width = max(_LEAST_NAME, min(longest, (width - _NUMBERS) // 2))
    yield f"{'NEW/S':>8} {'OPEN':>8} {'REFUSED/S':>9} {'DROPPED/S':>9} " + _pair(
        "SERVICE PORT", "FRONTEND", name_width
    )
    for number, row in enumerate(top.frontends):
        lines = [_line(row, name_width), *_details(row)]
        if len(lines) > left:
            yield from _more(len(top.frontends) - number + top.left_out)
            break
        left -= len(lines)
        yield from lines
    else:
        yield from _more(top.left_out)
        if not top.frontends:
            yield "no connections to Services"
    yield from notes


def _more(count: int) -> Iterator[str]:
    if count:
        yield f"and {count} more"


def _notes(top: Top) -> Iterator[str]:
    if top.events_lost:
        yield f"{top.events_lost} events lost: connections came faster than they could be counted"
    if not top.counted_refusals:
        yield "Refusals are not counted: run the daemon with --svcproxy-accounting."


def _line(row: TopFrontend, name_width: int) -> str:
    refused, dropped = map(_rate, (row.refused_per_second, row.dropped_per_second))
    return f"{_rate(row.new_per_second):>8} {row.open:>8} {refused:>9} {dropped:>9} " + _pair(
        _name(row), row.destination, name_width
    )


def _name(row: TopFrontend) -> str:
    return row.service + (f":{row.port_name}" if row.port_name else "")


def _pair(name: str, destination: str, width: int) -> str:
    if len(name) > width:
        name = name[: width - 1] + "…"
    return f"{name:<{width}} {destination}"


def _details(row: TopFrontend) -> Iterator[str]:
    """Yield a line with the clients, and one with the reason of refusals."""
    if row.clients:
        listed = " · ".join(f"{c.address} {c.connections}" for c in row.clients)
        yield f"{'':>9}from {listed}"
    if row.refused_clients:
        listed = " · ".join(f"{c.address} {c.connections}" for c in row.refused_clients)
        yield f"{'':>9}not served {listed}"
    if row.reason and (row.refused_per_second or row.dropped_per_second):
        yield f"{'':>9}{row.reason}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
