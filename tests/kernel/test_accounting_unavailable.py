"""Accounting on a kernel that cannot count: the guest with IPVS has no nf_tables."""

import pytest

from testbed.waiting import eventually
from tests.kernel.conftest import StageWith, all_at, assert_refused, servers

pytestmark = pytest.mark.kernel

VARIANTS = ("ipvs",)


def test_traffic_does_not_depend_on_accounting(stage_with: StageWith) -> None:
    stage = stage_with(svcproxy_accounting="connections", svcproxy_refusal_log_group="7")
    offer = stage.offer(4, all_at(stage.here[:1], 4))

    def failures() -> list[str]:
        return [line for line in stage.daemon.logs() if "accounting.failed" in line]

    eventually(failures, "the report", timeout=30.0)
    assert servers(stage.here[1], "tcp", offer.vip, 80, n=3) == {stage.here[0].name}
    offer.endpoints()
    assert_refused(stage.here[1], "tcp", offer.vip, 80)
    # Once for each family, although it is retried.
    assert len(failures()) <= 2
