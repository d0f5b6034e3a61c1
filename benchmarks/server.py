"""The fake API server of a benchmark: a separate process in the node's namespace.

It is controlled over a socket, with lines of JSON, and exits when the other end is closed. This
module has both ends: ``ApiServer`` controls, ``main`` is the process.
"""

import contextlib
import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.churn import Churn
from benchmarks.population import Population, Shape, Size
from testbed import manifests
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Node
from testbed.manifests import Object

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 120.0


class ApiServerError(Exception):
    """The process has exited, or failed to carry out a request."""


class ApiServer:
    """An API server that serves a population to the node; a context manager.

    Args:
        node: the machine on whose loopback address it listens.
        population: the Services that it serves.
        folder: the folder for ``kubeconfig`` and a log.
    """

    def __init__(self, node: Node, population: Population, folder: Path) -> None:
        self._node = node
        self._population = population
        self._kubeconfig = folder / "kubeconfig"
        self._log = folder / "apiserver.log"

    def __enter__(self) -> Self:
        self._control, other = socket.socketpair()
        self._control.settimeout(_PATIENCE)
        with other:
            command = [sys.executable, "-m", "benchmarks.server", str(other.fileno())]
            # Do not print its errors for unsupported requests.
            with self._log.open("wb") as log:
                self._process = self._node.netns.popen(
                    command, pass_fds=[other.fileno()], cwd=ROOT, output=log.fileno()
                )
        self._lines = self._control.makefile("rb")
        population = self._population
        self._request(
            "serve",
            size=str(population.size),
            shape=msgspec.to_builtins(population.shape),
            pods=population.pods,
            node=manifests.node(
                self._node.name, addresses=[self._node.ipv4], pod_cidrs=self._node.pod_cidrs
            ),
            kubeconfig=str(self._kubeconfig),
        )
        return self

    def put(self, obj: Object) -> float:
        """Replace an object; return ``time.monotonic()`` immediately before the watch event."""
        return float(self._request("put", object=obj))

    def churn(self, rate: float) -> None:
        """Start background churn at this rate per second; 0 stops it."""
        self._request("churn", rate=rate)

    def storm(self, changes: int) -> float:
        """Change endpoints as fast as possible; return the seconds that it took."""
        began = time.monotonic()
        self._request("storm", changes=changes)
        return time.monotonic() - began

    def sent(self) -> int:
        """The number of bytes sent to clients so far."""
        return int(self._request("sent"))

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lines.close()
        self._control.close()

    def _request(self, op: str, **arguments: Any) -> Any:
        try:
            self._control.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            line = self._lines.readline()
        except OSError as error:
            raise ApiServerError(f"no answer to {op}: {error}") from error
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            status = self._process.wait(_PATIENCE)
            raise ApiServerError(f"it ended at {op} with status {status}; its log:\n{said}")
        return json.loads(line)


def _serve(
    server: FakeApiServer, *, size: str, shape: dict[str, Any], pods: Sequence[str], **others: Any
) -> Churn:
    population = Population(Size.parse(size), pods, msgspec.convert(shape, Shape))
    server.put(others["node"])
    for obj in population.objects():
        server.put(obj)
    server.write_kubeconfig(Path(others["kubeconfig"]))
    # Otherwise the garbage collector would scan all objects repeatedly during measurements.
    gc.collect()
    gc.freeze()
    return Churn(server, population)


def main() -> None:
    """Serve until the other end of the control socket, given by its descriptor, is closed."""
    with socket.socket(fileno=int(sys.argv[1])) as control, FakeApiServer() as server:
        churn: Churn | None = None
        for line in control.makefile("rb"):
            request = json.loads(line)
            answer = time.monotonic()
            match request.pop("op"), churn:
                case "serve", None:
                    churn = _serve(server, **request)
                case "put", Churn():
                    server.put(request["object"])
                case "sent", Churn():
                    answer = server.sent
                case "storm", Churn():
                    churn.storm(request["changes"])
                case "churn", Churn():
                    churn.start(request["rate"]) if request["rate"] else churn.stop()
            control.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
