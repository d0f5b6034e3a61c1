"""kube-proxy's two metrics whose values are nfacct counters in the kernel."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from svcproxy.model.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED
from svcproxy.netlink import nfacct

_METRICS = {
    INVALID_DROPPED: (
        "kubeproxy_iptables_ct_state_invalid_dropped_packets",
        "[ALPHA] Forwarded packets dropped because conntrack calls them INVALID.",
    ),
    LOCALHOST_ACCEPTED: (
        "kubeproxy_iptables_localhost_nodeports_accepted_packets",
        "[ALPHA] First packets of connections to node ports on a loopback address.",
    ),
}

PACKET_COUNTS = tuple(name.removeprefix("kubeproxy_") for name, _ in _METRICS.values())
"""The names as ``ModeSpec.metrics`` spells them."""


class NfacctCollector(Collector):
    """Reads the nfacct counters at each scrape; yields nothing if the kernel has none."""

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values; the registry needs their names at registration."""
        return (CounterMetricFamily(name, text) for name, text in _METRICS.values())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        try:
            found = nfacct.packets(_METRICS)
        except OSError:
            return  # a kernel without nfacct
        for counter, value in found.items():
            name, text = _METRICS[counter]
            yield CounterMetricFamily(name, text, value)
