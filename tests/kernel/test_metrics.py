"""The metrics of a working daemon, in every mode."""

import pytest

from svcproxy.model.names import IPFamily
from testbed.metrics import Metrics
from testbed.waiting import eventually
from tests.fakes.compatibility import rows
from tests.kernel.conftest import Stage, all_at

pytestmark = pytest.mark.kernel

STAGES = ("queued", "computed", "applied")
CHANGE = "svcproxy_change_duration_seconds"
QUEUE_AGE = "svcproxy_queue_age_seconds"


def test_the_metrics_are_those_of_the_mode(stage: Stage) -> None:
    mode = stage.daemon.flags["proxy-mode"]
    listed = {
        name
        for name, _, _, modes, here in rows("Metrics", columns=5)
        if name.startswith("kubeproxy_")
        and not here.startswith("not applicable")
        and (modes == "all" or mode in modes.split(", "))
    }
    _, text = stage.daemon.node.traffic.fetch(10249, "/metrics")
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE kubeproxy_")}
    assert shown == listed


def test_the_way_of_a_change_is_told_by_stages(stage: Stage, family: int) -> None:
    labels = {"ip_family": IPFamily.IPV6 if family == 6 else IPFamily.IPV4}
    offer = stage.offer(family, all_at(stage.here, family))
    before = stage.daemon.metrics()
    offer.endpoints(*all_at(stage.here[:1], family))

    def updated() -> Metrics | None:
        """The metrics are updated after the change has reached the kernel."""
        metrics = stage.daemon.metrics()
        count = f"{CHANGE}_count"
        more = metrics.value(count, **labels) > before.value(count, **labels)
        return metrics if more else None

    after = eventually(updated, "a change")
    assert after is not None

    def spent(stage_name: str, of: str = "sum") -> float:
        name = f"{CHANGE}_{of}"
        wanted = {**labels, "stage": stage_name}
        return after.value(name, **wanted) - before.value(name, **wanted)

    assert spent("total", "count") == spent("applied", "count") >= 1
    assert spent("applied") > 0
    assert spent("total") == pytest.approx(sum(map(spent, STAGES)), rel=1e-6)
    assert _syncs(after, **labels) > _syncs(before, **labels)
    eventually(lambda: stage.daemon.metrics().value(QUEUE_AGE, **labels) == 0, "an empty queue")


def _syncs(metrics: Metrics, **labels: str) -> float:
    """Return the number of full and partial syncs."""
    parts = [
        metrics.value(f"kubeproxy_sync_{kind}proxy_rules_duration_seconds_count", **labels)
        for kind in ("", "full_", "partial_")
    ]
    assert parts[0] == parts[1] + parts[2]
    return parts[0]
