"""Latencies from the text of the metrics page."""

import pytest

from svcproxy.config import ProxyMode
from svcproxy.observe.exposition import render
from svcproxy.observe.metrics import Metrics
from svcproxy.ui.core.latency import stage_latencies


def test_quantiles_are_those_of_the_observed_durations() -> None:
    metrics = Metrics(ProxyMode.NFTABLES)
    for seconds in [0.003] * 98 + [2.0] * 2:
        metrics.change_duration.labels("IPv4", "applied").observe(seconds)
    metrics.change_duration.labels("IPv4", "total").observe(1e9)
    metrics.change_duration.labels("IPv6", "queued")
    applied, total = stage_latencies(render(metrics.registry).body.decode())
    assert (applied.family, applied.stage, applied.syncs) == ("IPv4", "applied", 100)
    # Buckets double, so a quantile is right within a factor of two.
    assert applied.p50 == pytest.approx(0.003, rel=0.5)
    assert applied.p99 == pytest.approx(2.0, rel=0.5)
    assert total.p99 == pytest.approx(0.0001 * 2**19), "more than the last finite bound"


@pytest.mark.parametrize("text", ["", "svcproxy_change_duration_seconds_bucket{} 1", "\x00{"])
def test_other_texts_have_no_latencies(text: str) -> None:
    assert stage_latencies(text) == ()
