"""Runs a real API server: etcd and kube-apiserver from a folder, in a network namespace.

The folder is envtest's ``KUBEBUILDER_ASSETS``. Both listen on the namespace's
loopback only.
"""

import http.client
import json
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from testbed.netns import NetNS
from testbed.waiting import eventually

ADMIN, PROXY = "token-of-the-admin", "token-of-the-proxy"
SERVICE_ACCOUNT = "system:serviceaccount:kube-system:svcproxy"
PORT, ETCD_PORT = 16443, 12379


class RealApiServer:
    """etcd and kube-apiserver in a namespace, and a client for them.

    Args:
        netns: the namespace in which they run.
        assets: the folder with both programs, and kubectl if ``kubectl`` is called.
        folder: an empty folder for data, certificates and logs.
        service_ranges: the ranges of cluster IPs.
    """

    def __init__(
        self,
        netns: NetNS,
        assets: Path,
        folder: Path,
        *,
        service_ranges: str = "10.96.0.0/16,fd00:10:96::/112",
    ) -> None:
        self.netns = netns
        self.service_ranges = service_ranges
        self.assets = assets
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        tokens = [f"{ADMIN},admin,1,system:masters", f"{PROXY},{SERVICE_ACCOUNT},2"]
        (folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        subprocess.run(
            ["openssl", "genrsa", "-out", folder / "sa.key", "2048"],
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Start the programs that are not running, and wait until the API is ready."""
        if "etcd" not in self._processes:
            self._spawn("etcd", self._etcd_flags())
            time.sleep(0.3)
        self._spawn("kube-apiserver", self._apiserver_flags())
        eventually(self._ready, "a ready API server", timeout=90, every=0.2)

    def stop_apiserver(self) -> None:
        """Stop the API server; etcd keeps the objects."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    def close(self) -> None:
        """Stop both programs."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _spawn(self, program: str, flags: dict[str, object]) -> None:
        command = [str(self.assets / program), *(f"--{k}={v}" for k, v in flags.items())]
        with (self.folder / f"{program}.log").open("ab") as log:
            self._processes[program] = self.netns.popen(command, output=log.fileno())

    def _etcd_flags(self) -> dict[str, object]:
        clients, peers = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PORT + 1}"
        return {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }

    def _apiserver_flags(self) -> dict[str, object]:
        return {
            "etcd-servers": f"http://127.0.0.1:{ETCD_PORT}",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": PORT,
            "cert-dir": self.folder / "certificates",
            "token-auth-file": self.folder / "tokens.csv",
            "endpoint-reconciler-type": "none",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.folder / "sa.key",
            "service-account-signing-key-file": self.folder / "sa.key",
            "service-cluster-ip-range": self.service_ranges,
            "authorization-mode": "RBAC",
            "disable-admission-plugins": "ServiceAccount",
            "allow-privileged": "true",
        }

    def _ready(self) -> bool:
        process = self._processes["kube-apiserver"]
        if process.poll() is not None:
            raise RuntimeError((self.folder / "kube-apiserver.log").read_text()[-2000:])
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request as administrator; return status and decoded body."""

        def call() -> tuple[int, Any]:
            connection = self._connection()
            try:
                return self.request_on(connection, method, path, body)
            finally:
                connection.close()

        return self.netns.call(call)

    def connect(self) -> http.client.HTTPSConnection:
        """Open a connection for several calls of ``request_on``."""

        def call() -> http.client.HTTPSConnection:
            connection = self._connection()
            connection.connect()
            return connection

        return self.netns.call(call)

    @staticmethod
    def request_on(
        connection: http.client.HTTPSConnection, method: str, path: str, body: Any = None
    ) -> tuple[int, Any]:
        """Send a request on a connection; return status and decoded body.

        A ``body`` of type ``str`` is sent unchanged; any other is encoded as JSON.
        """
        headers = {"Authorization": f"Bearer {ADMIN}"}
        headers["Content-Type"] = (
            "application/merge-patch+json" if method == "PATCH" else "application/json"
        )
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        connection.request(method, path, text, headers)
        with connection.getresponse() as response:
            answer = response.read()
        try:
            return response.status, json.loads(answer)
        except (ValueError, RecursionError):  # plain text, or nested too deeply for this decoder
            return response.status, answer.decode()

    @staticmethod
    def _connection() -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", PORT, context=context, timeout=30)

    def create(self, *objects: dict[str, Any]) -> None:
        """Create objects of the kinds that the tests use."""
        for obj in objects:
            status, answer = self.request("POST", collection(obj), obj)
            assert status in {200, 201}, answer

    def replace(self, obj: dict[str, Any]) -> None:
        """Replace an object, regardless of its current version."""
        path = f"{collection(obj)}/{obj['metadata']['name']}"
        status, answer = self.request("PATCH", path, obj)
        assert status == 200, answer

    def delete(self, obj: dict[str, Any]) -> None:
        """Delete an object."""
        path = f"{collection(obj)}/{obj['metadata']['name']}"
        status, answer = self.request("DELETE", path)
        assert status in {200, 202}, answer

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator; return its output."""
        words = [str(self.assets / "kubectl"), f"--kubeconfig={self.kubeconfig(ADMIN)}", *arguments]
        return self.netns.run(*words, stdin=stdin).stdout

    def kubeconfig(self, token: str = PROXY) -> Path:
        """Write a kubeconfig with a token (by default the service account's) and the server's CA."""
        path = self.folder / f"kubeconfig-{token}"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{PORT}",
                        "certificate-authority": str(self.folder / "certificates/apiserver.crt"),
                    },
                }
            ],
            "users": [{"name": "proxy", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "proxy"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(document))
        return path


def collection(obj: dict[str, Any]) -> str:
    """Return the path at which objects of this kind are created."""
    plural = {
        "Service": "services",
        "Node": "nodes",
        "EndpointSlice": "endpointslices",
        "ServiceAccount": "serviceaccounts",
        "ClusterRole": "clusterroles",
        "ClusterRoleBinding": "clusterrolebindings",
        "Namespace": "namespaces",
    }[obj["kind"]]
    version = obj["apiVersion"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    namespace = obj["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
