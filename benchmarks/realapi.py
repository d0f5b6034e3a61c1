"""A real API server for the benchmark, as a replacement of ``server.ApiServer``."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.churn import Churn
from benchmarks.population import SERVICE_RANGE, Population
from benchmarks.server import ApiServerError
from testbed import manifests
from testbed.cluster import Node
from testbed.manifests import Object
from testbed.realapi import ADMIN, RealApiServer, collection

_WRITERS = 8
_GIVEN_BY_SERVER = ("uid", "creationTimestamp", "generation")


class RealApi:
    """etcd and kube-apiserver with a population; a context manager.

    Args:
        node: the machine on whose loopback address it listens.
        population: the Services that it serves.
        folder: the folder for ``kubeconfig``, logs and data.
        assets: the folder with the programs.
    """

    def __init__(self, node: Node, population: Population, folder: Path, assets: Path) -> None:
        self._node = node
        self._population = population
        self._folder = folder
        data = folder / "apiserver"
        data.mkdir()
        self._server = RealApiServer(node.netns, assets, data, service_ranges=str(SERVICE_RANGE))
        self._churn = Churn(self, population)
        self._local = threading.local()

    def __enter__(self) -> Self:
        try:
            self._server.start()
            self._fill()
        except BaseException:
            self._server.close()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._churn.stop()
        self._server.close()

    def put(self, obj: Object) -> float:
        """Replace an object; return ``time.monotonic()`` of the server's response."""
        self._request("PUT", f"{collection(obj)}/{obj['metadata']['name']}", obj)
        return time.monotonic()

    def churn(self, rate: float) -> None:
        """Start background churn at this rate per second; 0 stops it."""
        if rate:
            self._churn.start(rate)
        else:
            self._churn.stop()

    def storm(self, changes: int) -> float:
        """Change endpoints as fast as possible; return the seconds that it took."""
        began = time.monotonic()
        self._churn.storm(changes)
        return time.monotonic() - began

    def sent(self) -> int:
        """The number of bytes sent is unknown: 0."""
        return 0

    def _fill(self) -> None:
        (self._folder / "kubeconfig").write_bytes(self._server.kubeconfig(ADMIN).read_bytes())
        objects = [
            manifests.node(
                self._node.name, addresses=[self._node.ipv4], pod_cidrs=self._node.pod_cidrs
            ),
            *self._population.objects(),
        ]
        for namespace in sorted({o["metadata"].get("namespace", "") for o in objects} - {""}):
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            self._request("POST", "/api/v1/namespaces", body)
        failures: list[Exception] = []

        def create(share: list[Object]) -> None:
            try:
                for obj in share:
                    self._request("POST", collection(obj), obj)
            except ApiServerError as error:
                failures.append(error)

        writers = [
            threading.Thread(target=create, args=(objects[number::_WRITERS],))
            for number in range(_WRITERS)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if failures:
            raise failures[0]

    def _request(self, method: str, path: str, obj: Any) -> None:
        metadata = {k: v for k, v in obj["metadata"].items() if k not in _GIVEN_BY_SERVER}
        if not hasattr(self._local, "connection"):
            self._local.connection = self._server.connect()
        status, answer = RealApiServer.request_on(
            self._local.connection, method, path, {**obj, "metadata": metadata}
        )
        # Namespaces such as kube-system exist already.
        if status not in {200, 201} and not (status == 409 and obj["kind"] == "Namespace"):
            raise ApiServerError(f"{method} {path}: {status} {answer}")
