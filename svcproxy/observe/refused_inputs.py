"""The metric that counts inputs refused because they exceeded a limit."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from svcproxy.refusals import Refusals


class RefusedInputsCollector(Collector):
    """Collects ``svcproxy_refused_inputs_total`` from the process-wide counts."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def collect(self) -> Iterator[Metric]:
        """Yield one series for each input and limit with at least one refusal."""
        family = CounterMetricFamily(
            "svcproxy_refused_inputs",
            "Inputs that were refused because they exceeded a limit; see docs/limits.md.",
            labels=("input", "limit"),
        )
        for (source, limit), count in sorted(self._refusals.totals().items()):
            family.add_metric((source, limit), count)
        yield family
