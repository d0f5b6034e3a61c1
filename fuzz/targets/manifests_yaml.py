"""A manifest file is read or refused in one line, and does not affect another file."""

from svcproxy.kube.core.validation import LABELS, SUBDOMAINS
from svcproxy.kube.manifest_files import ManifestError, read_manifest

SEEDS = (
    b"kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n",
    b"kind: List\nitems:\n- kind: EndpointSlice\n  addressType: IPv4\n  metadata: {name: a}\n",
    b'{"kind":"ServiceList","items":[{"metadata":{"name":"x\\"\\n"}}]}',
    b"kind: ServiceCIDR\napiVersion: networking.k8s.io/v1beta1\n---\nkind: Node\n---\n",
    b"a: &a {k: v}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\nmetadata: &m {labels: *m}\n",
    b"kind: List\nitems: &i [{kind: List, items: *i}]\n",
    b"spec: {ports: [{port: 0x" + b"f" * 100 + b"}]}\nkind: Service\nmetadata: {name: a}\n",
    b"[" * 200,
    b"kind: Service\nmetadata: {name: [a], namespace: {a: b}}\n",
)
_GOOD = SEEDS[0]


def check(data: bytes) -> None:
    """Read the bytes as YAML and as JSON, alone and after a valid object."""
    for origin in ("a.yaml", "a.json"):
        _read(origin, data)
    behind = _read("a.yaml", _GOOD + b"---\n" + data)
    assert behind is None or "default/web" in behind


def _read(origin: str, data: bytes) -> set[str] | None:
    try:
        manifest = read_manifest(origin, data)
    except ManifestError as error:
        assert "\n" not in str(error), error
        return None
    for problem in manifest.problems:
        assert "\n" not in str(problem), problem
        assert len(str(problem)) < 4096, problem
    for (_, name), obj in manifest.objects.items():
        if obj is not None:
            assert SUBDOMAINS.allowed(name.name), name
            assert not name.namespace or LABELS.allowed(name.namespace), name
    return {str(name) for _, name in manifest.objects}
