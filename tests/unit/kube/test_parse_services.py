from typing import Any

import pytest

from svcproxy.model.names import NamespacedName, Protocol
from svcproxy.model.objects import Service, ServicePortSpec
from tests.fakes import objects
from tests.fakes.objects import Obj
from tests.fakes.parsing import parsed, problem_of


def parsed_service(**spec: Any) -> Service:
    result = parsed(objects.service(**spec))
    assert isinstance(result, Service)
    return result


class TestService:
    def test_a_plain_object(self) -> None:
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
    def test_services_without_a_cluster_ip_are_skipped(self, spec: Obj) -> None:
        assert parsed(objects.service(**spec)) is None

    def test_a_service_of_another_proxy_is_skipped(self) -> None:
        obj = objects.service()
        obj["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": ""}
        assert parsed(obj) is None

    def test_the_headless_label_does_not_matter_for_services(self) -> None:
        # kube-proxy asks only for EndpointSlices without it (cmd/kube-proxy/app/server.go).
        obj = objects.service()
        obj["metadata"]["labels"] = {"service.kubernetes.io/headless": ""}
        assert parsed(obj) is not None

    def test_skipped_services_are_not_validated(self) -> None:
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
    def test_node_ports_are_read_for_types_that_have_them(self, type_: str, node_port: int) -> None:
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
    def test_external_policy_applies_to_externally_reachable_services(
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

    def test_only_ingress_ips_in_vip_mode_are_read(self) -> None:
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

    def test_lists_that_old_servers_did_not_validate(self) -> None:
        service = parsed_service(
            externalIPs=["", " ", " 192.0.2.1"],
            loadBalancerSourceRanges=[" 10.0.0.0/8\t", "", "fd00::1/64 "],
        )
        assert service.external_ips == ("192.0.2.1",)
        assert service.source_ranges == ("10.0.0.0/8", "fd00::/64")

    def test_only_annotations_with_given_keys_are_kept(self) -> None:
        obj = objects.service()
        obj["metadata"]["annotations"] = {
            "svcproxy.example/b": "1",
            "kube-router.io/a": "2",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        }
        keys = frozenset({"svcproxy.example/b", "kube-router.io/a", "kube-router.io/absent"})
        service = parsed(obj, keys)
        assert isinstance(service, Service)
        assert service.annotations == (("kube-router.io/a", "2"), ("svcproxy.example/b", "1"))
        service = parsed(obj)
        assert isinstance(service, Service)
        assert service.annotations == ()

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
            ({"ports": [{"port": 0}]}, "spec.ports[0].port: 0 is not a port"),
            (
                {"ports": [{"port": 80}, {"port": 65536}]},
                "spec.ports[1].port: 65536 is not between 1 and 65535",
            ),
            ({"ports": [{"port": -1}]}, "spec.ports[0].port: -1 is not between 1 and 65535"),
            (
                {"ports": [{"port": "http"}]},
                "spec.ports[0].port: expected int, got str",
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
    def test_malformed_fields_are_refused(self, spec: Obj, problem: str) -> None:
        assert problem_of(objects.service(**spec)) == problem

    def test_names_are_required(self) -> None:
        assert problem_of(objects.service(namespace=None)) == "metadata.namespace: is missing"
        assert problem_of(objects.service(name="")) == "metadata.name: is missing"

    def test_a_malformed_ingress_ip_is_refused(self) -> None:
        obj = objects.service()
        obj["status"]["loadBalancer"]["ingress"] = [{"ip": "x"}]
        expected = "status.loadBalancer.ingress[0].ip: 'x' is not an IP address"
        assert problem_of(obj) == expected
