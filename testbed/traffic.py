"""Runs servers and clients in a namespace, in one long-running helper process.

A request to the helper costs a fraction of a millisecond more than the traffic itself. All methods
are thread-safe.
"""

import contextlib
import itertools
import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from testbed import forkserver
from testbed.netns import NetNS
from testbed.outcomes import LoadResult, Outcome, Sample, count, decode

_GRACE = 10.0  # seconds that a request may take beyond its own time limit


class TrafficError(Exception):
    """A helper failed to carry out a request, or has exited."""


@dataclass(frozen=True, slots=True)
class Held:
    """A connection that stays open; a context manager that closes it.

    ``first`` is the outcome of the exchange immediately after opening.
    """

    traffic: "Traffic"
    handle: int
    first: Outcome

    def check(self, timeout: float = 1.0) -> Outcome:
        """Send a line on the open connection and return the outcome."""
        return decode(self.traffic.request("check", timeout, handle=self.handle, timeout=timeout))

    def close(self) -> None:
        """Close the connection."""
        self.traffic.request("release", handle=self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(TrafficError):
            self.close()


@dataclass(frozen=True, slots=True)
class Load:
    """A load that runs in the background."""

    traffic: "Traffic"
    handle: int
    limit: float

    def wait(self) -> LoadResult:
        """Wait until all connections have been started and have ended."""
        return self._finish(stop=False)

    def stop(self) -> LoadResult:
        """Start no more connections, and wait until all started ones have ended."""
        return self._finish(stop=True)

    def _finish(self, *, stop: bool) -> LoadResult:
        records = self.traffic.request("finish", self.limit, handle=self.handle, stop=stop)
        samples = [Sample(record[0], decode(record[1:])) for record in records]
        return LoadResult(tuple(sorted(samples, key=lambda sample: sample.at)))


class Traffic:
    """The helper process of one namespace."""

    def __init__(self, name: str, netns: NetNS) -> None:
        self.name = name
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._control, other = socket.socketpair()
        with other:
            self._process = forkserver.agents().start([name], netns, [other.fileno()])
        self._reader = threading.Thread(target=self._read, name=f"reader {name}", daemon=True)
        self._reader.start()

    def serve(
        self,
        *,
        tcp: Iterable[int] = (),
        udp: Iterable[int] = (),
        addresses: Iterable[str] = (),
    ) -> None:
        """Start echo servers on these ports, by default on all addresses."""
        for proto, ports in (("tcp", list(tcp)), ("udp", list(udp))):
            if ports:
                self.request("serve", proto=proto, ports=ports, addresses=list(addresses))

    def unserve(
        self, *, tcp: Iterable[int] = (), udp: Iterable[int] = (), established: bool = True
    ) -> None:
        """Stop echo servers; close open TCP connections unless ``established`` is false."""
        for proto, ports in (("tcp", list(tcp)), ("udp", list(udp))):
            if ports:
                self.request("unserve", proto=proto, ports=ports, established=established)

    def connect(
        self,
        proto: str,
        address: str,
        port: int,
        *,
        timeout: float = 1.0,
        source_port: int = 0,
        source_address: str = "",
    ) -> Outcome:
        """Make one new connection (``tcp``) or send one datagram (``udp``).

        A TCP connection is closed after the answer, with a reset if it has a ``source_port``,
        so that the port can be reused immediately. Without a ``source_port``, each datagram
        has a different source port, so it starts a new flow.
        """
        target = _target(proto, address, port, timeout)
        target.update(source_port=source_port, source_address=source_address)
        return decode(self.request("dial", timeout, target=target, count=1)[0])

    def dial(
        self, proto: str, address: str, port: int, n: int, *, timeout: float = 1.0
    ) -> list[Outcome]:
        """Make ``n`` new connections, one after the other."""
        target = _target(proto, address, port, timeout)
        results = self.request("dial", timeout * n, target=target, count=n)
        return [decode(result) for result in results]

    def burst(
        self, proto: str, address: str, port: int, n: int, *, timeout: float = 1.0
    ) -> Counter[str]:
        """Make ``n`` new connections; count answers by server, failures by label."""
        return count(self.dial(proto, address, port, n, timeout=timeout))

    def hold(
        self,
        proto: str,
        address: str,
        port: int,
        *,
        timeout: float = 1.0,
        source_port: int = 0,
        source_address: str = "",
    ) -> Held:
        """Open a connection (or a UDP socket) that stays open for later checks."""
        target = _target(proto, address, port, timeout)
        target.update(source_port=source_port, source_address=source_address)
        handle, first = self.request("hold", timeout, target=target)
        return Held(self, handle, decode(first))

    def load(
        self,
        proto: str,
        address: str,
        port: int,
        *,
        rate: float = 300.0,
        duration: float = 3600.0,
        timeout: float = 1.0,
        source_address: str = "",
    ) -> Load:
        """Begin to make ``rate`` new connections a second, in the background."""
        target = _target(proto, address, port, timeout)
        target.update(source_address=source_address)
        handle = self.request("load", target=target, rate=rate, duration=duration)
        return Load(self, handle, duration + timeout)

    def fetch(
        self, port: int, path: str = "/", *, address: str = "127.0.0.1", timeout: float = 5.0
    ) -> tuple[int, str]:
        """Send an HTTP GET; return status and body, or 0 and the reason without an answer."""
        status, body = self.request(
            "fetch", timeout, address=address, port=port, path=path, timeout=timeout
        )
        return int(status), str(body)

    def request(self, op: str, limit: float = 0.0, /, **arguments: Any) -> Any:
        """Send a request to the helper and return its result.

        Raises:
            TrafficError: it failed, or took longer than ``limit`` and a grace period.
        """
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._ids)
            self._waiting[number] = future
            message = json.dumps({"id": number, "op": op, **arguments})
            try:
                self._control.sendall(message.encode() + b"\n")
            except OSError as error:
                raise TrafficError(f"{self.name}: the helper is gone: {error}") from error
        try:
            return future.result(limit + _GRACE)
        except TimeoutError as error:
            raise TrafficError(f"{self.name}: no reply to {op} {arguments}") from error

    def close(self) -> None:
        """Stop the helper with its servers and connections."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._control.close()

    def _read(self) -> None:
        with self._control.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                reply = json.loads(line)
                future = self._waiting.pop(reply["id"])
                if "error" in reply:
                    future.set_exception(TrafficError(f"{self.name}: {reply['error']}"))
                else:
                    future.set_result(reply["result"])
        for future in list(self._waiting.values()):
            future.set_exception(TrafficError(f"{self.name}: the helper is gone"))


def _target(proto: str, address: str, port: int, timeout: float) -> dict[str, Any]:
    if proto not in {"tcp", "udp"}:
        raise ValueError(f"proto must be tcp or udp, not {proto!r}")
    return {"proto": proto, "address": address, "port": port, "timeout": timeout}
