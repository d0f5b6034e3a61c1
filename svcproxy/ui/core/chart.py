"""The chart of stage latencies: a table whose last column has bars on a logarithmic scale. Pure.

The bars are inline SVG without style attributes, which the Content-Security-Policy forbids.
"""

import math
from collections.abc import Sequence

from svcproxy.ui.core.frame import Column, table
from svcproxy.ui.core.html import Content, Html, element
from svcproxy.ui.core.latency import StageLatency
from svcproxy.ui.core.words import duration

_WIDTH, _HEIGHT = 240, 14
_SHORTEST, _LONGEST = 1e-4, 10.0
_DECADES = round(math.log10(_LONGEST / _SHORTEST))

_MEANINGS = {
    "queued": "waits for the sync to begin",
    "computed": "until the plan is ready",
    "applied": "until the kernel has it",
    "total": "the sum",
}


def latency_chart(latencies: Sequence[StageLatency]) -> Html:
    """Return a table for each IP family: its stages with median, 99th percentile and bars."""
    families = dict.fromkeys(latency.family for latency in latencies)
    return element("div", (_family(family, latencies) for family in families), class_="columns")


def _family(family: str, latencies: Sequence[StageLatency]) -> Html:
    columns = (
        Column(family),
        Column("p50", number=True),
        Column("p99", number=True),
        Column("0.1 ms to 10 s, logarithmic", class_="chart"),
    )
    rows = (_row(latency) for latency in latencies if latency.family == family)
    return table(f"Latency of {family} changes by stage", columns, rows, class_="latency")


def _row(latency: StageLatency) -> tuple[Content, ...]:
    name = element("span", latency.stage, title=_MEANINGS.get(latency.stage))
    return (name, duration(latency.p50), duration(latency.p99), _bars(latency))


def _bars(latency: StageLatency) -> Html:
    p50, p99 = _position(latency.p50), _position(latency.p99)
    grid = (
        element("line", x1=x, x2=x, y1=0, y2=_HEIGHT, class_="grid")
        for x in (round(_WIDTH * n / _DECADES) for n in range(_DECADES + 1))
    )
    return element(
        "svg",
        grid,
        element("rect", x=0, y=4, width=p99, height=6, class_="p99"),
        element("rect", x=0, y=2, width=p50, height=10, class_="p50"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"median {duration(latency.p50)}, 99th percentile {duration(latency.p99)}",
        class_="bars",
    )


def _position(seconds: float) -> int:
    """Return the place of a duration on the scale; at least 2, so that a bar is visible."""
    share = math.log10(max(seconds, _SHORTEST) / _SHORTEST) / _DECADES
    return max(2, round(_WIDTH * min(1.0, share)))
