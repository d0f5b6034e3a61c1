"""Process metrics that Go's Prometheus library exports and Python's does not."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_START = "process_start_time_seconds"
_UNLIMITED = float(2**64 - 1)


def process_start_time() -> float:
    """Return when this process started, in seconds since the epoch."""
    metrics = ProcessCollector(registry=None).collect()
    return next((m.samples[0].value for m in metrics if m.name == _START), time.time())


class GoProcessCollector(Collector):
    """Collects the address space limit, and the IP traffic of the process's network namespace.

    Args:
        netstat: the kernel's counters of the namespace.
    """

    def __init__(self, netstat: Path = Path("/proc/self/net/netstat")) -> None:
        self._netstat = netstat

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those that the kernel does not report are left out."""
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        yield GaugeMetricFamily(
            "process_virtual_memory_max_bytes",
            "Limit of the process's virtual memory.",
            _UNLIMITED if limit == resource.RLIM_INFINITY else limit,
        )
        octets = self._octets()
        for field, direction in (("InOctets", "receive"), ("OutOctets", "transmit")):
            if field in octets:
                yield CounterMetricFamily(
                    f"process_network_{direction}_bytes",
                    "Bytes in IP packets of the process's network namespace (normally the node's).",
                    octets[field],
                )

    def _octets(self) -> dict[str, float]:
        try:
            lines = self._netstat.read_text(encoding="ascii").splitlines()
        except OSError:
            return {}
        rows = [line.split() for line in lines if line.startswith("IpExt:")]
        if len(rows) != 2:
            return {}
        names, figures = rows
        return {name: float(figure) for name, figure in zip(names[1:], figures[1:], strict=False)}
