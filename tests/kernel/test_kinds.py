"""Which Services and slices are served, and in which IP families."""

import pytest

from testbed import manifests as m
from testbed.manifests import Object
from tests.kernel.conftest import (
    PORTS,
    Offer,
    Stage,
    all_at,
    ask,
    assert_dropped,
    assert_refused,
    at,
    servers,
)

pytestmark = pytest.mark.kernel

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"


@pytest.mark.behaviour(
    "Kinds of Services, and IP families: Headless and `ExternalName` Services",
)
def test_headless_services_are_left_alone(stage: Stage, family: int) -> None:
    """Not even their external IPs are served."""
    address = stage.address(family, outside=True)
    offer = stage.offer(family, [at(stage.here[0], family)], externalIPs=[address])
    vip = offer.vip
    assert servers(stage.client, "tcp", address, 80, n=3) == {"pod1a"}
    offer.change(clusterIP="None", clusterIPs=["None"])
    assert_dropped(stage.client, "tcp", address, 80)
    assert_dropped(stage.client, "tcp", vip, 80)


@pytest.mark.behaviour(
    "Kinds of Services, and IP families: Headless and `ExternalName` Services",
)
def test_external_names_are_left_alone(stage: Stage, family: int) -> None:
    """Even if fields of their former type are still set."""
    address = stage.address(family, outside=True)
    offer = stage.offer(family, [at(stage.here[0], family)], externalIPs=[address])
    assert servers(stage.client, "tcp", address, 80, n=3) == {"pod1a"}
    offer.change(type="ExternalName", externalName="example.org")
    for there in (address, offer.vip):
        assert_dropped(stage.client, "tcp", there, 80)


@pytest.mark.behaviour(
    "Kinds of Services, and IP families: `service.kubernetes.io/service-proxy-name`",
)
def test_services_of_another_proxy_are_left_alone(stage: Stage, family: int) -> None:
    """The label may be added and removed; its value does not matter."""
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    for labels, served in (({}, True), ({PROXY_NAME: "mesh"}, False), ({}, True)):
        offer.label(labels)
        for proto, port in offer.ports:
            if served:
                assert servers(stage.client, proto, offer.vip, port, n=3) == {"pod1a"}
            else:
                assert_dropped(stage.client, proto, offer.vip, port)
        for proto, port in offer.node_ports:
            address = stage.node.ip(family)
            if served:
                assert servers(stage.client, proto, address, port, n=3) == {"pod1a"}
            else:
                assert_refused(stage.client, proto, address, port, how="reset")


@pytest.mark.behaviour("Kinds of Services, and IP families: `service.kubernetes.io/headless`")
def test_headless_slices_are_left_alone(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    labelled = m.endpoint_slice(offer.service, all_at(stage.here, family))
    labelled["metadata"]["labels"][HEADLESS] = ""
    offer.put_slices(only=labelled)
    assert_refused(stage.client, "tcp", offer.vip, 80)


@pytest.mark.behaviour("Kinds of Services, and IP families: `service.kubernetes.io/headless`")
def test_slices_of_no_service_are_left_alone(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here[:1], family))
    orphan = m.endpoint_slice(offer.service, all_at(stage.here[1:], family), suffix="orphan")
    del orphan["metadata"]["labels"]
    offer.put_slices(own=offer.slices[""], orphan=orphan)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}


@pytest.mark.behaviour("Kinds of Services, and IP families: Namespaces")
def test_a_namespace_keeps_services_of_the_same_name_apart(stage: Stage, family: int) -> None:
    first = stage.offer(family, [at(stage.here[0], family)], name="same", namespace="one")
    second = stage.offer(family, [at(stage.here[1], family)], name="same", namespace="two")
    try:
        assert servers(stage.client, "tcp", first.vip, 80) == {"pod1a"}
        assert servers(stage.client, "tcp", second.vip, 80) == {"pod1b"}
    finally:
        first.remove()
        second.remove()


def _dual_stack(stage: Stage, first: int) -> tuple[Offer, dict[int, str], dict[int, Object]]:
    """A Service of both families, the ``first`` of them its primary one: itself, IPs, slices."""
    order = (first, 10 - first)
    vips = {family: stage.address(family) for family in order}
    offer = stage.offer(first, vip=vips[first], type="NodePort")
    offer.spec["clusterIPs"] = list(vips.values())
    offer.spec["ipFamilies"] = [f"IPv{family}" for family in order]
    offer.spec["ipFamilyPolicy"] = "RequireDualStack"
    slices = {
        family: m.endpoint_slice(offer.service, all_at(stage.here, family)) for family in order
    }
    offer.put_slices(first=slices[order[0]], second=slices[order[1]])
    return offer, vips, slices


@pytest.mark.behaviour("Kinds of Services, and IP families: Dual stack")
def test_dual_stack_services_serve_both_families(stage: Stage, family: int) -> None:
    offer, vips, _ = _dual_stack(stage, first=family)
    for each, vip in vips.items():
        for proto, port in offer.ports:
            assert ask(stage.client, proto, vip, port) == stage.masqueraded(stage.here, each)
            pod = stage.there[0]
            assert ask(pod, proto, vip, port) == stage.kept(pod, stage.here, each)
        for proto, port in offer.node_ports:
            assert ask(stage.client, proto, stage.node.ip(each), port) == stage.masqueraded(
                stage.here, each
            )


@pytest.mark.behaviour("Kinds of Services, and IP families: Dual stack")
def test_the_families_of_a_dual_stack_service_have_their_own_endpoints(
    stage: Stage, family: int
) -> None:
    offer, vips, slices = _dual_stack(stage, first=family)
    other = 10 - family
    offer.put_slices(only=slices[family])
    for proto, port in offer.ports:
        assert servers(stage.client, proto, vips[family], port) == {"pod1a", "pod1b"}
        assert_refused(stage.client, proto, vips[other], port)


@pytest.mark.behaviour("Kinds of Services, and IP families: Single stack")
def test_a_single_stack_service_serves_its_family_only(stage: Stage, family: int) -> None:
    """The other family is not served: there, the node port belongs to the node."""
    offer = stage.offer(family, all_at(stage.here, family), ports=PORTS, type="NodePort")
    other = 10 - family
    offer.put_slices(
        own=offer.slices[""], other=m.endpoint_slice(offer.service, all_at(stage.here, other))
    )
    for proto, port in offer.ports:
        assert servers(stage.client, proto, offer.vip, port) == {"pod1a", "pod1b"}
    for proto, port in offer.node_ports:
        assert servers(stage.client, proto, stage.node.ip(family), port) == {"pod1a", "pod1b"}
        assert_refused(stage.client, proto, stage.node.ip(other), port, how="reset")


@pytest.mark.behaviour("Kinds of Services, and IP families: Dual stack")
def test_a_service_may_become_dual_stack(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    other = 10 - family
    vip = stage.address(other)
    offer.spec["clusterIPs"].append(vip)
    offer.put_slices(
        own=offer.slices[""], other=m.endpoint_slice(offer.service, all_at(stage.here, other))
    )
    assert servers(stage.client, "tcp", vip, 80) == {"pod1a", "pod1b"}
    offer.spec["clusterIPs"].pop()
    stage.sync()
    assert_dropped(stage.client, "tcp", vip, 80)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}
