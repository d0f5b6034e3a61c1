from datetime import UTC, datetime
from typing import Any

import pytest

from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, Node, SliceEndpoint, SlicePort
from tests.fakes import objects
from tests.fakes.objects import Obj
from tests.fakes.parsing import parsed, problem_of


def parsed_slice(**top: Any) -> EndpointSlice:
    result = parsed(objects.endpoint_slice(**top))
    assert isinstance(result, EndpointSlice)
    return result


def parsed_node(**top: Any) -> Node:
    result = parsed(objects.node(**top))
    assert isinstance(result, Node)
    return result


class TestEndpointSlice:
    def test_a_plain_object(self) -> None:
        assert parsed_slice(addresses=("10.0.0.1",)) == EndpointSlice(
            name=NamespacedName("default", "web-1"),
            service=NamespacedName("default", "web"),
            family=IPFamily.IPV4,
            ports=(SlicePort("http", Protocol.TCP, 8080),),
            endpoints=(SliceEndpoint("10.0.0.1"),),
        )

    def test_slices_without_a_service_or_with_host_names_or_headless_are_skipped(self) -> None:
        assert parsed(objects.endpoint_slice(service_name="")) is None
        assert parsed(objects.endpoint_slice(addressType="FQDN", addresses=("a.b",))) is None
        headless = objects.endpoint_slice()
        headless["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
        assert parsed(headless) is None

    def test_nulls_are_like_absent_fields(self) -> None:
        empty = parsed_slice(ports=None, endpoints=None)
        assert (empty.ports, empty.endpoints) == ((), ())

    def test_ports_without_a_number_are_skipped(self) -> None:
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
                "endpoints[0].conditions.ready: expected bool, got str",
            ),
        ],
    )
    def test_malformed_fields_are_refused(self, top: Obj, problem: str) -> None:
        assert problem_of(objects.endpoint_slice(**top)) == problem


class TestNode:
    def test_a_node_with_all_fields(self) -> None:
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

    def test_a_node_without_optional_fields(self) -> None:
        assert parsed_node() == Node(name="node-1")

    def test_pod_cidrs_fall_back_to_the_single_one(self) -> None:
        assert parsed_node(spec={"podCIDR": "10.1.0.0/24"}).pod_cidrs == ("10.1.0.0/24",)

    def test_the_deletion_timestamp_is_read(self) -> None:
        obj = objects.node()
        obj["metadata"]["deletionTimestamp"] = "2024-05-01T10:00:00Z"
        node = parsed(obj)
        assert isinstance(node, Node)
        assert node.deleting

    def test_malformed_fields_are_refused(self) -> None:
        bad = objects.node(spec={"podCIDR": "x"})
        assert problem_of(bad) == "spec.podCIDR: 'x' is not a CIDR such as 10.0.0.0/8"
        bad = objects.node(status={"addresses": [{"type": "InternalIP", "address": "x"}]})
        assert problem_of(bad) == "status.addresses[0].address: 'x' is not an IP address"
        assert problem_of(objects.node(name="")) == "metadata.name: is missing"
