"""``--feature-gates=AllowServiceExternalIPs=false``: external IPs are not served."""

import pytest

from tests.kernel.conftest import StageWith, all_at, ask, assert_dropped

pytestmark = pytest.mark.kernel


@pytest.mark.behaviour(
    "Load balancers and external IPs: `--feature-gates=AllowServiceExternalIPs=false`",
)
def test_external_ips_are_not_served_and_all_else_is(stage_with: StageWith, family: int) -> None:
    stage = stage_with(feature_gates="AllowServiceExternalIPs=false")
    pods = [stage.here[0]]
    address = stage.address(family, outside=True)
    offer = stage.offer(family, all_at(pods, family), type="NodePort", externalIPs=[address])
    for proto, port in offer.ports:
        assert_dropped(stage.client, proto, address, port)
        assert ask(stage.here[1], proto, offer.vip, port, n=3)
    for proto, port in offer.node_ports:
        assert ask(stage.client, proto, stage.node.ip(family), port, n=3)
