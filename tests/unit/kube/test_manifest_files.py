import pytest

from svcproxy.kube.manifest_files import ManifestError, read_manifest
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import EndpointSlice, Node, Service, ServiceCIDR

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  creationTimestamp: 1970-01-01T00:01:00Z
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: {port}
"""


def service(name: str = "web", port: object = 80) -> str:
    return SERVICE.format(name=name, port=port)


def problems(text: str, origin: str = "a.yaml") -> list[str]:
    return [str(problem) for problem in read_manifest(origin, text.encode()).problems]


def names(text: str, origin: str = "a.yaml") -> list[str]:
    return [f"{kind} {name}" for kind, name in read_manifest(origin, text.encode()).objects]


def test_manifests_are_parsed_like_objects_of_the_api() -> None:
    manifest = read_manifest("a.yaml", service().encode())
    assert manifest.problems == ()
    obj = manifest.objects[Kind.SERVICE, NamespacedName("default", "web")]
    assert isinstance(obj, Service)
    assert obj.cluster_ips == ("10.96.0.1",)
    assert obj.created == 60.0


def test_documents_and_lists_are_split() -> None:
    text = f"""\
---
---
{service("a")}
---
apiVersion: v1
kind: List
items:
- {{kind: Service, metadata: {{name: b, namespace: other}}, spec: {{clusterIP: 10.0.0.1}}}}
- kind: EndpointSliceList
  items:
  - {{metadata: {{name: c, labels: {{kubernetes.io/service-name: a}}}}, addressType: IPv4}}
---
kind: Node
metadata: {{name: n}}
"""
    assert problems(text) == []
    assert names(text) == [
        "Service default/a", "Service other/b", "EndpointSlice default/c", "Node n",
    ]  # fmt: skip


def test_json_manifests() -> None:
    text = '{"kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]}'
    manifest = read_manifest("a.json", text.encode())
    assert manifest.objects == {(Kind.SERVICE, NamespacedName("default", "a")): None}


def test_every_kind_is_parsed_to_its_type() -> None:
    text = """\
{kind: EndpointSlice, metadata: {name: c, labels: {kubernetes.io/service-name: a}},
 addressType: IPv4}
---
{kind: Node, metadata: {name: n}}
---
{kind: ServiceCIDR, apiVersion: networking.k8s.io/v1, metadata: {name: k}}
"""
    found = read_manifest("a.yaml", text.encode()).objects.values()
    assert [type(obj) for obj in found] == [EndpointSlice, Node, ServiceCIDR]
    assert names(text)[1:] == ["Node n", "ServiceCIDR k"], "they have no namespace"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "kind: ConfigMap",
        "{kind: Service, apiVersion: serving.knative.dev/v1, metadata: {name: x}}",
        "{kind: Service, apiVersion: example.com/v1, spec: 7}",
        "{kind: List, items: null}",
    ],
)
def test_other_kinds_are_ignored(text: str) -> None:
    assert problems(text) == []
    assert names(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("7", "a.yaml:1: is not a Kubernetes object"),
        ("\n\nspec: {}", "a.yaml:3: kind: is missing"),
        ("kind: [Service]", "a.yaml:1: kind: is not a string"),
        ("kind: List\nitems: 7", "a.yaml:2: items: is not a list"),
        (
            "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\nmetadata: {name: x}",
            (
                "a.yaml:2 EndpointSlice default/x: apiVersion: 'discovery.k8s.io/v1beta1' is not "
                "supported: use discovery.k8s.io/v1"
            ),
        ),
        (
            service(port=0),
            "a.yaml:9 Service default/web: spec.ports[0].port: 0 is not a port",
        ),
        (
            service(port="http"),
            "a.yaml:9 Service default/web: spec.ports[0].port: expected int, got str",
        ),
        (
            service() + "  - protocol: TCP\n",
            "a.yaml:10 Service default/web: spec.ports[1].port: is missing",
        ),
        (
            (
                "kind: List\nitems:\n- kind: Service\n  metadata: {name: x}\n  spec:\n"
                "    clusterIP: one"
            ),
            "a.yaml:6 Service default/x: spec.clusterIP: 'one' is not an IP address",
        ),
        ("kind: Service\nmetadata: 7", "a.yaml:2 Service: metadata: expected object, got int"),
        (
            "kind: Service\nspec: {clusterIP: 10.0.0.1}",
            "a.yaml:1 Service: metadata.name: is missing",
        ),
        (
            service() + "---\n" + service(),
            "a.yaml:11 Service default/web: is in this file twice; the first one counts",
        ),
    ],
)
def test_problems_have_line_numbers(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_problems_in_json_have_no_line_number() -> None:
    text = '{"kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "x"}}'
    assert problems(text, "a.json") == [
        "a.json Service default/a: spec.clusterIP: 'x' is not an IP address"
    ]


def test_a_malformed_object_is_reported_by_name_and_affects_no_other() -> None:
    manifest = read_manifest("a.yaml", f"{service('a', 0)}---\n{service('b')}".encode())
    assert manifest.failed == {(Kind.SERVICE, NamespacedName("default", "a"))}
    assert list(manifest.objects) == [(Kind.SERVICE, NamespacedName("default", "b"))]
    assert not manifest.nameless
    assert read_manifest("a.yaml", b"kind: Service").nameless is False
    assert read_manifest("a.yaml", b"7").nameless


@pytest.mark.parametrize(
    ("origin", "data", "problem"),
    [
        ("a.yaml", b"a: 1\nb: [1,\nc: }", "a.yaml:3: not valid YAML: "),
        ("a.yaml", b"a: 1\n\tb: 2", "a.yaml:2: not valid YAML: "),
        ("a.yaml", b"a: \xff", "a.yaml: not valid YAML: "),
        ("a.yaml", b"a: &x [*y]", "a.yaml:1: not valid YAML: "),
        ("a.yaml", b"? [a]\n: b", "a.yaml:1: not valid YAML: "),
        ("a.json", b'{"a": 1,\n "b": }', "a.json:2: not valid JSON: Expecting value"),
        ("a.json", b'"\xff"', "a.json: not valid JSON: it is not UTF-8"),
        ("a.json", b"", "a.json:1: not valid JSON: "),
    ],
)
def test_malformed_files_are_refused(origin: str, data: bytes, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(origin, data)
    assert str(caught.value).startswith(problem)
