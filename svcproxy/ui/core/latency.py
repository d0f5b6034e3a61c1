"""How long changes take by stage, from the histograms on the metrics page. Pure."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

METRIC = "svcproxy_change_duration_seconds"
STAGES = ("queued", "computed", "applied", "total")
"""The stages in their order; the others add up to ``total``."""

_BUCKET = re.compile(
    METRIC + r'_bucket\{(?=[^}]*ip_family="(?P<family>\w+)")(?=[^}]*stage="(?P<stage>\w+)")'
    r'(?=[^}]*le="(?P<le>[^"]+)")[^}]*\} (?P<count>\S+)'
)


class StageLatency(NamedTuple):
    """The latency of one stage of changes in one IP family.

    Attributes:
        family: the family, as in the metrics.
        stage: one of ``STAGES``.
        syncs: the number of syncs.
        p50: the median in seconds.
        p99: the 99th percentile in seconds.
    """

    family: str
    stage: str
    syncs: int
    p50: float
    p99: float


def stage_latencies(metrics: str) -> tuple[StageLatency, ...]:
    """Return the latencies of the stages that the metrics have, by family, in their order.

    Args:
        metrics: the metrics in the text format of Prometheus.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for match in _BUCKET.finditer(metrics):
        bound = math.inf if match["le"] == "+Inf" else float(match["le"])
        found.setdefault((match["family"], match["stage"]), []).append(
            (bound, float(match["count"]))
        )
    return tuple(_latencies(found))


def _latencies(
    found: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
) -> Iterator[StageLatency]:
    for family in sorted({family for family, _ in found}):
        for stage in STAGES:
            buckets = sorted(found.get((family, stage), ()))
            count = int(buckets[-1][1]) if buckets else 0
            if count:
                yield StageLatency(
                    family, stage, count, quantile(buckets, 0.5), quantile(buckets, 0.99)
                )


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Return a quantile as Prometheus computes it: linear within its bucket.

    Args:
        buckets: upper bounds with cumulative counts, ascending; the last bound is infinite.
        share: which quantile, from 0 to 1.

    Returns:
        The quantile; the highest finite bound if it is in the last bucket.
    """
    rank = buckets[-1][1] * share
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == math.inf:
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
