"""Plots of a report, as SVG files."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pygal
from pygal.style import Style

from benchmarks.figures import count, median, megabytes, seconds
from benchmarks.results import Change, Result

# pygal's plug-in loader changes the import system in a way that causes deprecation warnings.
sys.meta_path = [f for f in sys.meta_path if type(f).__name__ != "PluginImportFixer"]

_STYLE = Style(
    background="white",
    plot_background="white",
    font_family="sans-serif",
    label_font_size=12,
    legend_font_size=12,
    title_font_size=16,
)
Series = tuple[str, list[tuple[float, float]]]


def write_plots(results: Sequence[Result], folder: Path, stem: str) -> list[Path]:
    """Plot the results into files whose names begin with ``stem``; return their paths."""
    charts = {
        "change-by-size": _by_size(
            "A changed endpoint: API event to answering connection, p50",
            results,
            lambda r: median(c.latency for c in r.changes) if r.changes else None,
        ),
        "cold-start-by-size": _by_size(
            "Cold start: process start to last Service's answer",
            results,
            lambda r: median(r.cold_start) if r.cold_start else None,
        ),
        "change-distribution": _distribution(
            "Changes that have arrived, of a quiet cluster", results, lambda r: r.changes
        ),
        "churn-distribution": _distribution(
            "Changes that have arrived, while others happen elsewhere",
            results,
            lambda r: r.churned,
        ),
        "memory": _memory(results),
    }
    written = []
    for name, chart in charts.items():
        if chart is not None:
            path = folder / f"{stem}-{name}.svg"
            path.write_bytes(chart.render(disable_xml_declaration=True).encode())
            written.append(path)
    return written


def _kind(result: Result) -> str:
    return " ".join(part for part in (result.subject, result.mode, result.variant) if part)


def _chart(title: str, series: Iterable[Series], x_title: str, **options: object) -> pygal.XY:
    chart = pygal.XY(
        title=title,
        x_title=x_title,
        style=_STYLE,
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        # A self-contained file, without references to other resources.
        js=[],
        **options,
    )
    for name, points in series:
        chart.add(name, points)
    return chart


def _by_size(
    title: str, results: Sequence[Result], figure: Callable[[Result], float | None]
) -> pygal.XY | None:
    """Plot one line per program, mode and variant over the number of Services."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in sorted(results, key=lambda r: r.size.services):
        value = figure(result)
        if value is not None:
            lines.setdefault(_kind(result), []).append((result.size.services, value))
    if not lines:
        return None
    return _chart(
        title,
        lines.items(),
        "Services",
        logarithmic=True,
        value_formatter=seconds,
        x_value_formatter=count,
        x_labels=sorted({x for points in lines.values() for x, _ in points}),
    )


def _distribution(
    title: str, results: Sequence[Result], figure: Callable[[Result], Sequence[Change]]
) -> pygal.XY | None:
    """Plot the cumulative distribution of change latencies, at the most frequently measured size."""
    size = _common_size([result for result in results if figure(result)])
    series = []
    for result in results:
        latencies = sorted(change.latency for change in figure(result))
        if result.size == size and latencies:
            share = [(t, (i + 1) / len(latencies)) for i, t in enumerate(latencies)]
            series.append((_kind(result), share))
    if not series:
        return None
    return _chart(
        f"{title} ({size} Services x endpoints)",
        series,
        "time from the API server's event",
        xrange=(0, _longest(series)),
        x_value_formatter=seconds,
        value_formatter=lambda share: f"{share:.0%}",
        show_dots=False,
    )


def _longest(series: Iterable[Series]) -> float:
    return max(points[-1][0] for _, points in series)


def _common_size(results: Sequence[Result]) -> object:
    sizes = [result.size for result in results]
    return max(sizes, key=lambda size: (sizes.count(size), size.services), default=None)


def _memory(results: Sequence[Result]) -> pygal.Bar | None:
    size = _common_size([result for result in results if result.memory])
    shown = [result for result in results if result.memory and result.size == size]
    if not shown:
        return None
    chart = pygal.Bar(
        title=f"Resident memory ({size} Services x endpoints)",
        style=_STYLE,
        legend_at_bottom=True,
        value_formatter=megabytes,
        js=[],
    )
    chart.x_labels = [_kind(result) for result in shown]
    memories = [result.memory for result in shown if result.memory]
    chart.add("after the cold start", [memory.started for memory in memories])
    chart.add("after everything", [memory.after for memory in memories])
    chart.add("most", [memory.peak for memory in memories])
    return chart
