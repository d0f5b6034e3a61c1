"""A kubeconfig is read or refused with one line that can be logged."""

import tempfile
from pathlib import Path

from svcproxy.kube.kubeconfig import load_kubeconfig
from svcproxy.kube.source import SourceError

_CLUSTER = b"clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\n"
_CONTEXT = b"current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
SEEDS = (
    _CLUSTER + _CONTEXT + b"users: [{name: u, user: {token: abc}}]\n",
    _CLUSTER + _CONTEXT + b"users: [{name: u, user: {exec: {command: [a], args: 1}}}]\n",
    _CLUSTER + _CONTEXT + b"users: [{name: u, user: {client-key-data: '%%', client-key: /}}]\n",
    b"current-context: {a: b}\ncontexts: [{name: [1]}, {name: {}}, 3]\n",
    b"current-context: x\ncontexts: &a [{name: x, context: *a}]\n",
    b"users: 1\nclusters: {}\ncontexts: [{name: x, context: 5}]\ncurrent-context: x\n",
    b"[" * 300,
)


def check(data: bytes) -> None:
    """Load the bytes and read every field of the credentials."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(data)
        file.flush()
        try:
            kubeconfig = load_kubeconfig(Path(file.name), "")
            kubeconfig.flag("insecure-skip-tls-verify")
            for field in ("client-certificate", "client-key"):
                kubeconfig.pem("user", field)
            kubeconfig.pem("cluster", "certificate-authority")
        except SourceError as error:
            assert "\n" not in str(error), error
