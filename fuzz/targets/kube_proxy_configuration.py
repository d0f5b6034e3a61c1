"""A KubeProxyConfiguration is read or refused with problems; no content of it raises."""

from svcproxy.config.document import decode

SEEDS = (
    b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n",
    b"kind: KubeProxyConfiguration\nnodePortAddresses: [10.0.0.0/8, 'a\"\\n']\nbindAddress: ::\n",
    b'{"kind":"KubeProxyConfiguration","conntrack":{"maxPerCore":99999999999999999999}}',
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nfeatureGates: {<<: *a, A: true}\n",
    b"[" * 300,
    b"iptables: {syncPeriod: 1e309, minSyncPeriod: 0o9, masqueradeBit: 0x}\n",
    b"\xff\xfe\x00",
)


def check(data: bytes) -> None:
    """Decode one file; every message is one line."""
    document = decode(data, "config.yaml")
    for line in (*document.problems, *document.warnings):
        assert "\n" not in line, line
