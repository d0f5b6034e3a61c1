"""Names become hashes, and secrets are removed."""

import pytest

from svcproxy.commands.core.names import NameHasher, names_of, without_secrets
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, Node, Service, ServicePortSpec, SliceEndpoint

KEY = b"k" * 32
HASHER = NameHasher(KEY, {"filter", "shop", "node-a"})


def hashed(text: str) -> str:
    return HASHER.name(text)


def test_a_name_has_one_hash_for_each_key() -> None:
    assert hashed("web") == NameHasher(KEY).name("web") != hashed("web2")
    assert hashed("web") != NameHasher(b"other").name("web")


@pytest.mark.parametrize(
    "text",
    [
        "*filter",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A KUBE-SERVICES -d 10.96.0.0/14 -j KUBE-SVC-IP-0A600000-14",
        "ip6 saddr != fd00:10:244::/56 ip6 daddr . meta l4proto . th dport @cluster-ips",
        "add KUBE-NODE-PORT-TCP 30080",
        "nf_conntrack /proc/sys/net/ipv4/ip_forward svcproxy.io/v1 1/3",
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    ],
)
def test_rules_without_names_stay_as_they_are(text: str) -> None:
    assert HASHER.rules(text) == text


def test_comments_of_rules_are_hashed_and_keywords_are_not() -> None:
    text = '-A filter -m comment --comment "shop/web:http cluster IP" -j KUBE-SVC-CDGGSHYLG3RE2FKL'
    found = HASHER.rules(text)
    start = f'-A filter -m comment --comment "{hashed("shop")}/{hashed("web")}:{hashed("http")} '
    assert found.startswith(f'{start}cluster IP" -j KUBE-SVC-')
    assert "CDGGSHYLG3RE2FKL" not in found
    assert len(found.rpartition("-")[2]) == 16


def test_known_names_are_hashed_in_other_text() -> None:
    text = "error service=shop/web node=node-a: node-a.local, namespace shop."
    web = f"{hashed('shop')}/{hashed('web')}"
    expected = (
        f"error service={web} node={hashed('node-a')}: node-a.local, namespace {hashed('shop')}."
    )
    assert HASHER.text(text) == expected


def test_keys_of_documents_are_field_names_unless_they_name_an_object() -> None:
    value = {"shop": ["shop", 80, {"shop/web": None}]}
    web = f"{hashed('shop')}/{hashed('web')}"
    assert HASHER.value(value) == {"shop": [hashed("shop"), 80, {web: None}]}


def test_names_of_objects_include_ports_nodes_and_zones() -> None:
    service = Service(
        NamespacedName("ns", "svc"), (ServicePortSpec("port", Protocol.TCP, 80, 0),), ("10.0.0.1",)
    )
    endpoint = SliceEndpoint("10.0.0.2", node_name="n1", zone_hints=("z1",), node_hints=("n2",))
    found = EndpointSlice(
        NamespacedName("ns", "slice"), NamespacedName("ns", "svc"), IPFamily.IPV4, (), (endpoint,)
    )
    node = Node("n3", zone="z2")
    expected = {"ns", "svc", "port", "slice", "n1", "n2", "n3", "z1", "z2"}
    assert names_of([service, found, node]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://admin:pa55@10.0.0.1:6443/api", "GET https://REDACTED@10.0.0.1:6443/api"),
        ("https://a/b?c=d@e", "https://a/b?c=d@e"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer REDACTED"),
        ("x eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJl.c2ln y", "x REDACTED y"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b", "a REDACTED b"),
        ("env AWS_SECRET=hunter2 failed", "env AWS_SECRET=REDACTED failed"),
        ('{"token":"abc","x":1}', '{"token":"REDACTED","x":1}'),
        (
            "exec plugin 'x' failed: exec: process returned 1. I am hunter2: run it by hand to see",
            "exec plugin 'x' failed: exec: process returned 1 REDACTED: run it by hand to see",
        ),
        ("password: hunter2", "password: REDACTED"),
        ("service=default/token:http", "service=default/token:http"),
    ],
)
def test_secrets_are_removed(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
