"""svcproxy's performance targets, compared with measured figures."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from benchmarks.figures import median, megabytes, quantile, seconds
from benchmarks.population import Size
from benchmarks.results import Result

LARGE, LARGEST = Size(10_000, 5), Size(50_000, 2)
KINDS = (("nftables", "maps"), ("ipvs", ""), ("iptables", "legacy"), ("iptables", "nft"))
"""Mode and variant, in the order of the table's columns."""
Kind = tuple[str, str]


class Target(msgspec.Struct, frozen=True):
    """A figure of a result, and its limit for each kind; ``None`` is no limit."""

    title: str
    size: Size
    figure: Callable[[Result], float | None]
    text: Callable[[float], str]
    limits: Mapping[Kind, float | None]


def _latency(share: float) -> Callable[[Result], float | None]:
    def figure(result: Result) -> float | None:
        return quantile((c.latency for c in result.changes), share) if result.changes else None

    return figure


def _churned(result: Result) -> float | None:
    return quantile((c.latency for c in result.churned), 0.99) if result.churned else None


def _cold_start(result: Result) -> float | None:
    return median(result.cold_start) if result.cold_start else None


def _share(value: float) -> str:
    return f"{value:.1%}"


def _each(*limits: float | None) -> Mapping[Kind, float | None]:
    return dict(zip(KINDS, limits, strict=True))


TARGETS = (
    Target(
        "change, event to answering connection, p50",
        LARGE,
        _latency(0.5),
        seconds,
        _each(0.005, 0.005, 0.25, 0.1),
    ),
    Target(
        "the same under 50 changes/s elsewhere, p99",
        LARGE,
        _churned,
        seconds,
        _each(0.02, 0.02, 1.0, 0.5),
    ),
    Target("cold start", LARGE, _cold_start, seconds, _each(2.0, 3.0, 2.5, 10.0)),
    Target(
        "CPU per change", LARGE, lambda r: r.change_cpu, seconds, _each(0.005, 0.005, 0.25, 0.1)
    ),
    Target(
        "resident memory",
        LARGE,
        lambda r: r.memory.started if r.memory else None,
        megabytes,
        _each(150e6, 150e6, 200e6, 200e6),
    ),
    Target("idle CPU, of one core", LARGE, lambda r: r.idle_cpu, _share, _each(*[0.005] * 4)),
    Target(
        "memory growth over 100,000 changes",
        LARGE,
        lambda r: r.memory.growth if r.memory and r.options.endurance >= 100_000 else None,
        _share,
        _each(*[0.02] * 4),
    ),
    Target(
        "50,000 x 2: change p50", LARGEST, _latency(0.5), seconds, _each(0.01, 0.01, None, None)
    ),
)


def target_table(results: Sequence[Result]) -> list[list[str]]:
    """Return a table of targets and svcproxy's figures: ``4.9 ms (<= 5.0 ms)``, ``MISSED``."""
    rows = [["", *(" ".join(filter(None, kind)) for kind in KINDS)]]
    for target in TARGETS:
        cells = [_cell(target, kind, results) for kind in KINDS]
        if any(cells):
            rows.append([target.title, *(cell or "-" for cell in cells)])
    return rows if len(rows) > 1 else []


def figures_of(
    target: Target, kind: Kind, results: Sequence[Result]
) -> tuple[float | None, list[float]]:
    """Return the result of svcproxy, ``None`` if there is none, and those of other programs.

    Of several results of a program, the last one is used.
    """
    measured: float | None = None
    others = []
    for result in results:
        if ((result.mode, result.variant), result.size) != (kind, target.size):
            continue
        value = target.figure(result)
        if result.subject == "svcproxy":
            measured = value if value is not None else measured
        elif value is not None:
            others.append(value)
    return measured, others


def _cell(target: Target, kind: Kind, results: Sequence[Result]) -> str:
    value, _ = figures_of(target, kind, results)
    limit = target.limits[kind]
    if value is None:
        return ""
    if limit is None:
        return target.text(value)
    missed = "" if value <= limit else "MISSED "
    return f"{missed}{target.text(value)} (<= {target.text(limit)})"
