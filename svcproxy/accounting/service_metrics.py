"""Metrics of chosen Services, read from the accounting tables at each scrape."""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock

import structlog
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Reading
from svcproxy.accounting.core.totals import Totals
from svcproxy.accounting.counters import CountersUnreadableError, read_some
from svcproxy.model.names import IPFamily, ServicePortName

Chosen = Mapping[IPFamily, Mapping[FrontendKey, ServicePortName]]
Read = Callable[
    [IPFamily, Mapping[FrontendKey, ServicePortName], float], dict[FrontendKey, Reading]
]

_SECONDS = 0.5
"""How long reading the counters of a family may take."""
_LABELS = ("namespace", "service", "port", "protocol", "ip_family")
_LEFT_OUT = "svcproxy_service_metrics_left_out"
_LEFT_OUT_TEXT = "Services that were chosen to have metrics but are too many."
_METRICS = {
    "connections": (
        "svcproxy_service_connections",
        "New connections to a Service port, whether they were served or not.",
    ),
    "refused": (
        "svcproxy_service_refused",
        "Attempts to connect that were refused because no endpoint was ready.",
    ),
    "dropped": (
        "svcproxy_service_dropped",
        "Attempts to connect that were dropped by policy Local or by source ranges.",
    ),
}


class ServiceCollector(Collector):
    """Yields the metrics of the Services that are chosen at the moment.

    Args:
        chosen: returns the frontends of the chosen Services.
        left_out: returns how many chosen Services are too many.
        connections: whether connections are counted, and not only refusals.
        read: reads the counters of some frontends.
    """

    def __init__(
        self,
        chosen: Callable[[], Chosen],
        left_out: Callable[[], int],
        *,
        connections: bool,
        read: Read = read_some,
    ) -> None:
        self._chosen = chosen
        self._left_out = left_out
        self._names = [name for name in _METRICS if connections or name != "connections"]
        self._read = read
        self._lock = Lock()
        self._totals: Totals[tuple[FrontendKey, str]] = Totals()
        self._log = structlog.get_logger()

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values; the registry needs their names at registration."""
        for name in self._names:
            yield CounterMetricFamily(*_METRICS[name], labels=_LABELS)
        yield GaugeMetricFamily(_LEFT_OUT, _LEFT_OUT_TEXT)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        chosen = self._chosen()
        with self._lock:
            self._update(chosen)
            sums = self._sums(chosen)
        for name in self._names:
            family = CounterMetricFamily(*_METRICS[name], labels=_LABELS)
            for (ip_family, port, kind), value in sums.items():
                if kind == name:
                    labels = (port.namespace, port.name, port.port, port.protocol, ip_family)
                    family.add_metric(labels, value)
            yield family
        yield GaugeMetricFamily(_LEFT_OUT, _LEFT_OUT_TEXT, self._left_out())

    def _update(self, chosen: Chosen) -> None:
        readings: dict[tuple[FrontendKey, str], int] = {}
        for family, frontends in chosen.items():
            if not frontends:
                continue
            try:
                found = self._read(family, frontends, _SECONDS)
            except CountersUnreadableError as error:
                self._log.warning("accounting.unreadable", family=family, error=str(error))
                return
            for key, reading in found.items():
                readings.update({(key, name): getattr(reading, name) for name in self._names})
        self._totals.update(readings)
        self._totals.keep(
            (key, name) for frontends in chosen.values() for key in frontends for name in _METRICS
        )

    def _sums(self, chosen: Chosen) -> dict[tuple[IPFamily, ServicePortName, str], int]:
        sums: dict[tuple[IPFamily, ServicePortName, str], int] = {}
        for family, frontends in chosen.items():
            for key, port in frontends.items():
                for name in self._names:
                    at = family, port, name
                    sums[at] = sums.get(at, 0) + self._totals.of((key, name))
        return sums
