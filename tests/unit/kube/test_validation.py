"""Validation of objects: the API server's rules, and limits."""

from typing import Any

import pytest

from svcproxy import limits
from svcproxy.kube.core import wire
from svcproxy.kube.core.parse import ParseError
from svcproxy.kube.core.validation import LABEL_VALUES, LABELS, SUBDOMAINS, TAINT_KEYS, quoted
from svcproxy.kube.delivery import parse_safely
from svcproxy.model.names import Kind
from svcproxy.model.objects import EndpointSlice, Service
from svcproxy.refusals import REFUSALS
from tests.fakes import objects
from tests.fakes.objects import Obj
from tests.fakes.parsing import parsed, problem_of

HOSTILE = ['x"', "x\n", "x\\", "x y", "x;", "\u0445", "x\u202e", "\ud800", "x\x00", "{x}", "$x"]


@pytest.mark.parametrize("names", [LABELS, SUBDOMAINS, LABEL_VALUES, TAINT_KEYS])
def test_no_valid_name_contains_quotes_or_control_characters(names: dict[str, str]) -> None:
    for text in HOSTILE:
        with pytest.raises(ValueError, match="is not a") as caught:
            names[text]
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("names", "good", "bad"),
    [
        (LABELS, ["a", "0", "a-b", "7-eleven", "x" * 63], ["", "-a", "a-", "A", "a.b", "x" * 64]),
        (SUBDOMAINS, ["a.b", "x" * 100, "1.2-3", "y" * 253], ["", ".a", "a..b", "a-.b", "y" * 254]),
        (LABEL_VALUES, ["", "A_b.c-d", "Z" * 63], ["-a", "a_", "a/b", "Z" * 64]),
        (TAINT_KEYS, ["a", "node.kubernetes.io/A_b"], ["", "/a", "a/", "a/b/c", "A.b/" + "c" * 64]),
    ],
)
def test_the_rules_accept_valid_and_refuse_invalid_names(
    names: dict[str, str], good: list[str], bad: list[str]
) -> None:
    for name in good:
        assert names[name] == name
    for name in bad:
        with pytest.raises(ValueError, match="is not"):
            names[name]


def test_shared_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARED_NAMES", 10)
    for number in range(100):
        assert LABELS[f"name-{number}"]
    assert len(LABELS) <= 10


def test_values_in_messages_are_short_and_escaped() -> None:
    assert quoted("a\n\x1b[31m\u202e") == r"'a\n\x1b[31m\u202e'"
    assert len(quoted("a" * 10**6)) < 200
    assert len(quoted(10**10000)) < 200


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "\ud800"])
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("metadata.name", ("metadata", "name")),
        ("metadata.namespace", ("metadata", "namespace")),
        ("spec.ports[0].name", ("spec", "ports", 0, "name")),
        ("spec.ports[0].protocol", ("spec", "ports", 0, "protocol")),
        ("spec.clusterIPs[0]", ("spec", "clusterIPs", 0)),
        ("spec.externalIPs[0]", ("spec", "externalIPs", 0)),
        ("spec.loadBalancerSourceRanges[0]", ("spec", "loadBalancerSourceRanges", 0)),
    ],
)
def test_hostile_fields_of_a_service(field: str, place: tuple[str | int, ...], text: str) -> None:
    obj = objects.service()
    obj["spec"] |= {"externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    put(obj, place, text.strip() + text)
    assert problem_of(obj).startswith(f"{field}: ")


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "\ud800"])
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("metadata.name", ("metadata", "name")),
        (
            "metadata.labels[kubernetes.io/service-name]",
            ("metadata", "labels", "kubernetes.io/service-name"),
        ),
        ("ports[0].name", ("ports", 0, "name")),
        ("endpoints[0].addresses[0]", ("endpoints", 0, "addresses", 0)),
        ("endpoints[0].nodeName", ("endpoints", 0, "nodeName")),
        ("endpoints[0].hints.forZones[0].name", ("endpoints", 0, "hints", "forZones", 0, "name")),
        ("endpoints[0].hints.forNodes[0].name", ("endpoints", 0, "hints", "forNodes", 0, "name")),
    ],
)
def test_hostile_fields_of_a_slice(field: str, place: tuple[str | int, ...], text: str) -> None:
    obj = objects.endpoint_slice()
    obj["endpoints"] = [
        {"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}], "forNodes": [{}]}}
    ]
    put(obj, place, text)
    if "forNodes" not in field:
        obj["endpoints"][0]["hints"]["forNodes"] = None
    assert problem_of(obj).startswith(f"{field}: ")


SPECIAL = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "::ffff:127.0.0.1", "127.00.0.1"]


@pytest.mark.parametrize("address", SPECIAL)
def test_addresses_of_the_node_itself_are_refused_as_endpoints(address: str) -> None:
    obj = objects.endpoint_slice()
    obj["endpoints"] = [{"addresses": [address]}]
    assert problem_of(obj).endswith("is unspecified, loopback or link-local")
    assert problem_of(objects.service(externalIPs=[address])).startswith("spec.externalIPs[0]: ")


@pytest.mark.parametrize("address", ["::", "::1", "fe80::1", "ff02::1", "febf::", "ff12::1"])
def test_ipv6_addresses_of_the_node_itself_are_refused_as_endpoints(address: str) -> None:
    obj = objects.endpoint_slice(addressType="IPv6")
    obj["endpoints"] = [{"addresses": [address]}]
    assert problem_of(obj).endswith("is unspecified, loopback or link-local")


@pytest.mark.parametrize(
    ("kind", "address"),
    [("IPv4", "128.0.0.1"), ("IPv4", "0.0.0.1"), ("IPv4", "224.0.1.1"), ("IPv6", "fec0::1"),
     ("IPv6", "ff05::1"), ("IPv6", "::2"), ("IPv6", "::10")],
)  # fmt: skip
def test_other_addresses_are_accepted_as_by_the_api_server(kind: str, address: str) -> None:
    obj = objects.endpoint_slice(addressType=kind)
    obj["endpoints"] = [{"addresses": [address]}]
    slice_ = parsed(obj)
    assert isinstance(slice_, EndpointSlice)
    assert slice_.endpoints[0].address == address


def test_any_load_balancer_address_is_accepted_as_by_the_api_server() -> None:
    obj = objects.service(type="LoadBalancer")
    obj["status"]["loadBalancer"]["ingress"] = [{"ip": "169.254.1.1"}]
    service = parsed(obj)
    assert isinstance(service, Service)
    assert service.load_balancer_ips == ("169.254.1.1",)


def test_frontends_of_a_service_are_bounded() -> None:
    ports = [{"name": f"p{n}", "port": n} for n in range(1, 1001)]
    # The Service has a cluster IP as well.
    many = [f"192.0.2.{n}" for n in range(limits.SERVICE_FRONTENDS // 1000 - 1)]
    assert refused(objects.service(ports=ports, externalIPs=many), "service_frontends") is None
    obj = objects.service(ports=ports, externalIPs=[*many, "192.0.3.1"])
    assert refused(obj, "service_frontends") == (
        f"spec.ports: 1000 ports with {len(many) + 2} addresses and 0 source ranges exceed"
        f" {limits.SERVICE_FRONTENDS}"
        " (ports times addresses, with all ranges for each load-balancer IP)"
    )


def test_source_ranges_count_for_each_port_and_load_balancer_ip() -> None:
    ports = [{"name": f"p{n}", "port": n} for n in range(1, 11)]
    ranges = [f"10.{n // 250}.{n % 250}.0/24" for n in range(1000)]
    obj = objects.service(ports=ports, type="LoadBalancer", loadBalancerSourceRanges=ranges)
    balancer = obj["status"]["loadBalancer"]
    most = (limits.SERVICE_FRONTENDS // len(ports) - 1) // (len(ranges) + 1)
    balancer["ingress"] = [{"ip": f"192.0.2.{n}"} for n in range(most)]
    assert refused(obj, "service_frontends") is None
    balancer["ingress"] = [{"ip": f"192.0.2.{n}"} for n in range(most + 1)]
    assert refused(obj, "service_frontends") == (
        f"spec.ports: 10 ports with {most + 2} addresses and 1000 source ranges exceed"
        f" {limits.SERVICE_FRONTENDS}"
        " (ports times addresses, with all ranges for each load-balancer IP)"
    )


def test_targets_of_a_slice_are_bounded() -> None:
    obj = objects.endpoint_slice()
    obj["ports"] = [{"name": f"p{n}", "port": n} for n in range(1, 202)]
    obj["endpoints"] = [{"addresses": [f"10.0.{n // 250}.{n % 250}"]} for n in range(1000)]
    assert refused(obj, "slice_targets") == (
        "endpoints: 1000 endpoints with 201 ports exceed 200000 (endpoints times ports)"
    )
    obj["ports"].pop()
    assert refused(obj, "slice_targets") is None


@pytest.mark.parametrize("field", ["hints", "addresses", "podCIDRs", "taints", "cidrs"])
def test_short_lists_are_bounded(field: str) -> None:
    for count in (limits.LIST_ENTRIES, limits.LIST_ENTRIES + 1):
        problem = refused(with_list(field, count), "list_entries")
        assert (problem is None) == (count == limits.LIST_ENTRIES)
        assert problem is None or "1001 entries exceed 1000" in problem


def test_long_texts_are_cut_in_messages() -> None:
    for obj in (
        objects.service(clusterIPs=["0" * 10**6 + "1.2.3.4"]),
        objects.service(ports=[{"name": "a" * 10**6, "port": 1}]),
        objects.service(ports=[{"port": 10**4000}]),
        objects.service(loadBalancerSourceRanges=["1" * 10**6 + "/8"]),
    ):
        assert len(problem_of(obj)) < 400


def test_annotation_values_are_cut() -> None:
    obj = objects.service()
    obj["metadata"]["annotations"] = {"svcproxy.io/ipvs-scheduler": "r" * 10**6}
    service = parsed(obj, frozenset({"svcproxy.io/ipvs-scheduler"}))
    assert isinstance(service, Service)
    assert len(service.annotations[0][1]) == limits.ANNOTATION_CHARACTERS


def put(obj: Any, place: tuple[str | int, ...], value: object) -> None:
    for part in place[:-1]:
        obj = obj[part]
    obj[place[-1]] = value


def refused(obj: Obj, limit: str) -> str | None:
    """Parse an object as the daemon does; return the counted problem, or ``None``."""
    before = REFUSALS.totals()["object", limit]
    try:
        parse_safely(wire.convert_object(Kind(obj["kind"]), obj))
    except ParseError as error:
        assert REFUSALS.totals()["object", limit] == before + 1
        return str(error)
    assert REFUSALS.totals()["object", limit] == before
    return None


def with_list(field: str, count: int) -> Obj:
    if field == "hints":
        obj = objects.endpoint_slice()
        hints = {"forZones": [{"name": f"zone-{n}"} for n in range(count)]}
        obj["endpoints"] = [{"addresses": ["10.0.0.1"], "hints": hints}]
        return obj
    cidrs = [f"10.{n // 250}.{n % 250}.0/24" for n in range(count)]
    if field == "cidrs":
        return {**objects.service_cidr(), "spec": {"cidrs": cidrs}}
    node = objects.node()
    if field == "addresses":
        node["status"] = {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}] * count}
    else:
        entries = {"podCIDRs": cidrs, "taints": [{"key": f"k{n}"} for n in range(count)]}
        node["spec"] = {field: entries[field]}
    return node


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "224.0.0.7",
        "239.1.1.1",
        "255.255.255.255",
        "::1",
        "::",
        "ff02::1",
        "ff05::7",
    ],
)
def test_a_loopback_cluster_ip_is_refused(address: str) -> None:
    obj = objects.service(clusterIP=address, clusterIPs=[address])
    assert problem_of(obj) == (
        f"spec.clusterIPs[0]: {address!r} is unspecified, loopback, multicast or broadcast"
    )
