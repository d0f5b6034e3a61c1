import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube import wire
from svcproxy.kube.parse import ParseError, parse_object
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from tests.fakes import objects
from tests.fakes.objects import Obj


def parsed(obj: Obj) -> ApiObject | None:
    return parse_object(wire.decode_object(Kind(obj["kind"]), json.dumps(obj).encode()))


def parsed_service(**spec: Any) -> Service:
    result = parsed(objects.service(**spec))
    assert isinstance(result, Service)
    return result


def parsed_slice(**top: Any) -> EndpointSlice:
    result = parsed(objects.endpoint_slice(**top))
    assert isinstance(result, EndpointSlice)
    return result


def parsed_node(**top: Any) -> Node:
    result = parsed(objects.node(**top))
    assert isinstance(result, Node)
    return result


def labelled(obj: Obj, **labels: str) -> Obj:
    renamed = {name.replace("__", "/").replace("_", "."): value for name, value in labels.items()}
    obj["metadata"]["labels"] = {**obj["metadata"].get("labels", {}), **renamed}
    return obj


def problem_of(obj: Obj) -> str:
    with pytest.raises(ParseError) as caught:
        parsed(obj)
    return str(caught.value)


class TestService:
    def test_a_plain_one(self) -> None:
        assert parsed_service() == Service(
            name=NamespacedName("default", "web"),
            ports=(ServicePortSpec("http", Protocol.TCP, 80, 0),),
            cluster_ips=("10.96.0.10",),
        )

    @pytest.mark.parametrize(
        "spec",
        [
            {"type": "ExternalName"},
            {"clusterIP": "None", "clusterIPs": ["None"]},
            {"clusterIP": "", "clusterIPs": []},
            {"clusterIP": None, "clusterIPs": None},
            {"clusterIP": None, "clusterIPs": ["None"]},
        ],
    )
    def test_what_has_no_virtual_address_is_skipped(self, spec: Obj) -> None:
        assert parsed(objects.service(**spec)) is None

    def test_another_proxys_service_is_skipped(self) -> None:
        obj = labelled(objects.service())
        obj["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": ""}
        assert parsed(obj) is None

    def test_the_headless_label_says_nothing_about_services(self) -> None:
        # Since Kubernetes 1.34 kube-proxy selects Services by the absence of a cluster IP instead.
        obj = objects.service()
        obj["metadata"]["labels"] = {"service.kubernetes.io/headless": ""}
        assert parsed(obj) is not None

    def test_skipped_ones_are_skipped_before_they_are_checked(self) -> None:
        assert parsed(objects.service(type="ExternalName", ports=[{"port": 0}])) is None

    def test_cluster_ips_fall_back_to_the_single_one(self) -> None:
        assert parsed_service(clusterIPs=None).cluster_ips == ("10.96.0.10",)
        assert parsed_service(clusterIPs=[]).cluster_ips == ("10.96.0.10",)
        dual = parsed_service(clusterIPs=["010.96.0.1", "FD00::01"])
        assert dual.cluster_ips == ("10.96.0.1", "fd00::1")
        alone = parsed_service(clusterIP=None, clusterIPs=["10.96.0.1"])
        assert alone.cluster_ips == ("10.96.0.1",)

    def test_ports(self) -> None:
        ports = [{"port": 53, "protocol": "UDP", "name": None}, {"name": "s", "port": 9}]
        assert parsed_service(ports=ports).ports == (
            ServicePortSpec("", Protocol.UDP, 53, 0),
            ServicePortSpec("s", Protocol.TCP, 9, 0),
        )
        assert parsed_service(ports=None).ports == ()

    @pytest.mark.parametrize(
        ("type_", "node_port"), [("ClusterIP", 0), ("NodePort", 30080), ("LoadBalancer", 30080)]
    )
    def test_node_ports_count_for_types_that_have_them(self, type_: str, node_port: int) -> None:
        ports = [{"port": 80, "nodePort": 30080}]
        assert parsed_service(type=type_, ports=ports).ports[0].node_port == node_port

    @pytest.mark.parametrize(
        ("type_", "external_ips", "local"),
        [
            ("ClusterIP", [], False),
            ("ClusterIP", [""], False),
            ("ClusterIP", ["192.0.2.1"], True),
            ("NodePort", [], True),
            ("LoadBalancer", [], True),
        ],
    )
    def test_external_policy_counts_for_what_is_reached_from_outside(
        self, type_: str, external_ips: list[str], *, local: bool
    ) -> None:
        spec = {"type": type_, "externalIPs": external_ips, "externalTrafficPolicy": "Local"}
        service = parsed_service(**spec, healthCheckNodePort=31000)
        assert service.external_policy_local is local
        assert service.health_check_node_port == (31000 if type_ == "LoadBalancer" else 0)
        spec["externalTrafficPolicy"] = "Cluster"
        service = parsed_service(**spec, healthCheckNodePort=31000)
        assert (service.external_policy_local, service.health_check_node_port) == (False, 0)

    def test_internal_policy(self) -> None:
        assert parsed_service(internalTrafficPolicy="Local").internal_policy_local
        assert not parsed_service(internalTrafficPolicy="Cluster").internal_policy_local
        assert not parsed_service().internal_policy_local

    @pytest.mark.parametrize(
        ("affinity", "config", "seconds"),
        [
            ("None", None, 0),
            ("None", {"clientIP": {"timeoutSeconds": 5}}, 0),
            ("ClientIP", None, 10800),
            ("ClientIP", {"clientIP": None}, 10800),
            ("ClientIP", {"clientIP": {}}, 10800),
            ("ClientIP", {"clientIP": {"timeoutSeconds": 5}}, 5),
        ],
    )
    def test_affinity(self, affinity: str, config: Obj | None, seconds: int) -> None:
        service = parsed_service(sessionAffinity=affinity, sessionAffinityConfig=config)
        assert service.affinity_seconds == seconds

    def test_only_ingress_ips_in_vip_mode_count(self) -> None:
        obj = objects.service(type="LoadBalancer")
        obj["status"]["loadBalancer"]["ingress"] = [
            {"ip": "192.0.2.1"},
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"},
            {"ip": ""},
            {"ip": "2001:DB8::1", "ipMode": "VIP"},
        ]
        service = parsed(obj)
        assert isinstance(service, Service)
        assert service.load_balancer_ips == ("192.0.2.1", "192.0.2.2", "2001:db8::1")

    def test_lists_that_old_servers_did_not_check(self) -> None:
        service = parsed_service(
            externalIPs=["", " ", " 192.0.2.1"],
            loadBalancerSourceRanges=[" 10.0.0.0/8\t", "", "fd00::1/64 "],
        )
        assert service.external_ips == ("192.0.2.1",)
        assert service.source_ranges == ("10.0.0.0/8", "fd00::/64")

    def test_annotations_are_kept_when_they_are_for_us(self) -> None:
        obj = objects.service()
        obj["metadata"]["annotations"] = {
            "svcproxy.example/b": "1",
            "kube-router.io/a": "2",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        }
        service = parsed(obj)
        assert isinstance(service, Service)
        assert service.annotations == (("kube-router.io/a", "2"), ("svcproxy.example/b", "1"))

    @pytest.mark.parametrize(
        ("text", "created"), [("1970-01-01T00:01:00Z", 60.0), (None, 0.0), ("yesterday", 0.0)]
    )
    def test_creation_time(self, text: str | None, created: float) -> None:
        obj = objects.service()
        obj["metadata"]["creationTimestamp"] = text
        service = parsed(obj)
        assert isinstance(service, Service)
        assert service.created == created

    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ({"ports": [{}]}, "spec.ports[0].port: is missing"),
            ({"ports": [{"port": 0}]}, "spec.ports[0].port: 0 is no port"),
            (
                {"ports": [{"port": 80}, {"port": 65536}]},
                "spec.ports[1].port: 65536 is not between 1 and 65535",
            ),
            ({"ports": [{"port": -1}]}, "spec.ports[0].port: -1 is not between 1 and 65535"),
            (
                {"ports": [{"port": "http"}]},
                "spec.ports[0].port: expected int | null, got str",
            ),
            (
                {"ports": [{"port": 80, "protocol": "tcp"}]},
                "spec.ports[0].protocol: 'tcp' is not TCP, UDP or SCTP",
            ),
            (
                {"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]},
                "spec.ports[0].nodePort: 70000 is not between 1 and 65535",
            ),
            (
                {"clusterIP": "10.96.0.300", "clusterIPs": None},
                "spec.clusterIP: '10.96.0.300' is not an IP address",
            ),
            (
                {"clusterIPs": ["10.96.0.1", "x"]},
                "spec.clusterIPs[1]: 'x' is not an IP address",
            ),
            ({"externalIPs": ["x"]}, "spec.externalIPs[0]: 'x' is not an IP address"),
            (
                {"loadBalancerSourceRanges": ["10.0.0.0"]},
                "spec.loadBalancerSourceRanges[0]: '10.0.0.0' is not a CIDR such as 10.0.0.0/8",
            ),
            (
                {
                    "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
                },
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400",
            ),
        ],
    )
    def test_what_is_malformed_is_refused(self, spec: Obj, problem: str) -> None:
        assert problem_of(objects.service(**spec)) == problem

    def test_names_are_needed(self) -> None:
        assert problem_of(objects.service(namespace=None)) == "metadata.namespace: is missing"
        assert problem_of(objects.service(name="")) == "metadata.name: is missing"

    def test_a_bad_ingress_ip_is_refused(self) -> None:
        obj = objects.service()
        obj["status"]["loadBalancer"]["ingress"] = [{"ip": "x"}]
        expected = "status.loadBalancer.ingress[0].ip: 'x' is not an IP address"
        assert problem_of(obj) == expected


class TestEndpointSlice:
    def test_a_plain_one(self) -> None:
        assert parsed_slice(addresses=("10.0.0.1",)) == EndpointSlice(
            name=NamespacedName("default", "web-1"),
            service=NamespacedName("default", "web"),
            family=IPFamily.IPV4,
            ports=(SlicePort("http", Protocol.TCP, 8080),),
            endpoints=(SliceEndpoint("10.0.0.1"),),
        )

    def test_slices_without_service_of_names_or_headless_are_skipped(self) -> None:
        assert parsed(objects.endpoint_slice(service_name="")) is None
        assert parsed(objects.endpoint_slice(addressType="FQDN", addresses=("a.b",))) is None
        headless = objects.endpoint_slice()
        headless["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
        assert parsed(headless) is None

    def test_nulls_mean_nothing(self) -> None:
        empty = parsed_slice(ports=None, endpoints=None)
        assert (empty.ports, empty.endpoints) == ((), ())

    def test_ports_without_number_are_left_out(self) -> None:
        ports = [{"name": "a"}, {"port": 0}, {"port": None}, {"port": 53, "protocol": "UDP"}]
        assert parsed_slice(ports=ports).ports == (SlicePort("", Protocol.UDP, 53),)

    def test_only_the_first_address_counts(self) -> None:
        endpoints = [{"addresses": ["10.0.0.1", "x"]}, {"addresses": []}, {"addresses": None}]
        assert parsed_slice(endpoints=endpoints).endpoints == (SliceEndpoint("10.0.0.1"),)

    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            (None, (True, True, False)),
            ({}, (True, True, False)),
            ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
            ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
            ({"ready": True, "serving": False, "terminating": False}, (True, False, False)),
        ],
    )
    def test_conditions_are_defaulted(
        self, conditions: Obj | None, expected: tuple[bool, bool, bool]
    ) -> None:
        endpoints = [{"addresses": ["10.0.0.1"], "conditions": conditions}]
        endpoint = parsed_slice(endpoints=endpoints).endpoints[0]
        assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected

    def test_node_and_hints(self) -> None:
        hints = {
            "forZones": [{"name": "a"}, {"name": "b"}],
            "forNodes": [{"name": "node-1"}],
        }
        endpoints = [{"addresses": ["10.0.0.1"], "nodeName": "node-1", "hints": hints}]
        assert parsed_slice(endpoints=endpoints).endpoints == (
            SliceEndpoint(
                "10.0.0.1", node_name="node-1", zone_hints=("a", "b"), node_hints=("node-1",)
            ),
        )

    def test_ipv6(self) -> None:
        endpoints = parsed_slice(addressType="IPv6", addresses=("FD00::01",))
        assert endpoints.family is IPFamily.IPV6
        assert endpoints.endpoints == (SliceEndpoint("fd00::1"),)

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2024-05-01T10:00:00Z", datetime(2024, 5, 1, 10, tzinfo=UTC)),
            ("2024-05-01T12:00:00.5+02:00", datetime(2024, 5, 1, 10, 0, 0, 500000, UTC)),
            ("2024-05-01T10:00:00.123456789Z", datetime(2024, 5, 1, 10, 0, 0, 123456, UTC)),
            ("2024-05-01T10:00:00", None),
            ("soon", None),
            ("", None),
        ],
    )
    def test_the_trigger_time(self, text: str, moment: datetime | None) -> None:
        obj = objects.endpoint_slice()
        annotation = "endpoints.kubernetes.io/last-change-trigger-time"
        obj["metadata"]["annotations"] = {annotation: text}
        result = parsed(obj)
        assert isinstance(result, EndpointSlice)
        assert result.triggered == moment

    @pytest.mark.parametrize(
        ("top", "problem"),
        [
            ({"addressType": "IPX"}, "addressType: 'IPX' is not IPv4, IPv6 or FQDN"),
            ({"addressType": None}, "addressType: None is not IPv4, IPv6 or FQDN"),
            ({"ports": [{"port": 65536}]}, "ports[0].port: 65536 is not between 1 and 65535"),
            (
                {"ports": [{"port": 1, "protocol": "ICMP"}]},
                "ports[0].protocol: 'ICMP' is not TCP, UDP or SCTP",
            ),
            (
                {"addresses": ("10.0.0.1", "pod")},
                "endpoints[1].addresses[0]: 'pod' is not an IP address",
            ),
            ({"addresses": ("fd00::1",)}, "endpoints[0].addresses[0]: 'fd00::1' is not IPv4"),
            (
                {"addressType": "IPv6", "addresses": ("::ffff:1.2.3.4",)},
                "endpoints[0].addresses[0]: '1.2.3.4' is not IPv6",
            ),
            (
                {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": "yes"}}]},
                "endpoints[0].conditions.ready: expected bool | null, got str",
            ),
        ],
    )
    def test_what_is_malformed_is_refused(self, top: Obj, problem: str) -> None:
        assert problem_of(objects.endpoint_slice(**top)) == problem


class TestNode:
    def test_a_whole_one(self) -> None:
        obj = objects.node(
            spec={
                "podCIDR": "10.1.0.0/24",
                "podCIDRs": ["10.1.0.7/24", "fd00::/64"],
                "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "b"}],
            },
            status={
                "addresses": [
                    {"type": "ExternalIP", "address": "192.0.2.1"},
                    {"type": "Hostname", "address": "node-1"},
                    {"type": "InternalIP", "address": "010.0.0.1"},
                    {"type": "InternalIP", "address": "fd00::1"},
                ]
            },
        )
        obj["metadata"]["labels"] = {"topology.kubernetes.io/zone": "zone-a"}
        assert parsed(obj) == Node(
            name="node-1",
            zone="zone-a",
            pod_cidrs=("10.1.0.0/24", "fd00::/64"),
            addresses=("10.0.0.1", "fd00::1", "192.0.2.1"),
            taints=("a", "b"),
        )

    def test_a_bare_one(self) -> None:
        assert parsed_node() == Node(name="node-1")

    def test_pod_cidrs_fall_back_to_the_single_one(self) -> None:
        assert parsed_node(spec={"podCIDR": "10.1.0.0/24"}).pod_cidrs == ("10.1.0.0/24",)

    def test_deletion_is_seen(self) -> None:
        obj = objects.node()
        obj["metadata"]["deletionTimestamp"] = "2024-05-01T10:00:00Z"
        node = parsed(obj)
        assert isinstance(node, Node)
        assert node.deleting

    def test_what_is_malformed_is_refused(self) -> None:
        bad = objects.node(spec={"podCIDR": "x"})
        assert problem_of(bad) == "spec.podCIDR: 'x' is not a CIDR such as 10.0.0.0/8"
        bad = objects.node(status={"addresses": [{"type": "InternalIP", "address": "x"}]})
        assert problem_of(bad) == "status.addresses[0].address: 'x' is not an IP address"
        assert problem_of(objects.node(name="")) == "metadata.name: is missing"


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | st.sampled_from(["", "None", "Local", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(
    kind=st.sampled_from(Kind),
    field=st.sampled_from(
        ["spec", "status", "ports", "endpoints", "addressType", "metadata",
         "spec.ports", "spec.clusterIP", "spec.clusterIPs", "spec.podCIDRs", "spec.taints",
         "spec.sessionAffinityConfig", "status.loadBalancer", "status.addresses",
         "metadata.labels", "metadata.annotations", "metadata.creationTimestamp"]
    ),
    value=_values,
)  # fmt: skip
def test_whatever_stands_in_a_field_is_parsed_or_refused(
    kind: Kind, field: str, value: object
) -> None:
    makers = {
        Kind.SERVICE: objects.service,
        Kind.ENDPOINT_SLICE: objects.endpoint_slice,
        Kind.NODE: objects.node,
    }
    obj: Obj = makers[kind]()
    first, _, second = field.partition(".")
    if second:
        obj[first] = {**obj.get(first, {}), second: value}
    else:
        obj[first] = value
    try:
        parsed(obj)
    except ParseError as error:
        assert error.reason
