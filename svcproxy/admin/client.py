"""The client of the admin socket."""

import http.client
import socket
import time
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from svcproxy.admin.core.protocol import PROTOCOL, Repairs, Status
from svcproxy.model.names import Kind, NamespacedName
from svcproxy.model.objects import ApiObject, EndpointSlice, Node, Service, ServiceCIDR

_SECONDS = 30.0
_RETRY_SECONDS = 0.02

_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    Kind.SERVICE: msgspec.json.Decoder(list[Service]),
    Kind.ENDPOINT_SLICE: msgspec.json.Decoder(list[EndpointSlice]),
    Kind.NODE: msgspec.json.Decoder(list[Node]),
    Kind.SERVICE_CIDR: msgspec.json.Decoder(list[ServiceCIDR]),
}

Answer = TypeVar("Answer")


class AdminError(Exception):
    """The daemon cannot be asked; the message is one line that names the remedy."""


class NoDaemonError(AdminError):
    """No daemon listens, or it does not answer."""


class NotPermittedError(AdminError):
    """This process may not open the socket."""


class OtherVersionError(AdminError):
    """The daemon speaks another version of the protocol."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("svcproxy", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        deadline = time.monotonic() + (self.timeout or 0.0)
        while True:
            try:
                self.sock.connect(self._path)
            except BlockingIOError:  # too many clients wait already: the kernel does not wait here
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                time.sleep(_RETRY_SECONDS)
            else:
                return


class AdminClient:
    """Asks a daemon.

    Args:
        path: the path of the socket.
        seconds: how long to wait for each part of an answer.
    """

    def __init__(self, path: str, seconds: float = _SECONDS) -> None:
        self._path = path
        self._seconds = seconds

    def status(self) -> Status:
        """Return the state of the daemon.

        Raises:
            AdminError: see its subclasses.
        """
        body = self._get("/v1/status")
        try:
            protocol = msgspec.json.decode(body, type=_Version).protocol
        except msgspec.DecodeError:
            protocol = 0
        if protocol != PROTOCOL:
            raise OtherVersionError(
                f"the daemon at {self._path} is of another version (protocol {protocol}, this is"
                f" {PROTOCOL}): use the svcproxy program of the daemon's own image"
            )
        return self._decoded(body, Status)

    def objects(self, kind: Kind, service: NamespacedName | None = None) -> Iterator[ApiObject]:
        """Yield the objects of a kind that the daemon has stored.

        Args:
            kind: the kind.
            service: only what concerns this Service: for Services, those that claim one of its
                addresses; for EndpointSlices, its own. Other kinds have nothing.

        Raises:
            AdminError: see its subclasses.
        """
        decoder: msgspec.json.Decoder[list[ApiObject]] = _DECODERS[kind]
        query = {"kind": kind.value} | ({} if service is None else {"service": str(service)})
        with self._request(f"/v1/objects?{urlencode(query)}") as response:
            try:
                for line in response:
                    yield from decoder.decode(line)
            except msgspec.DecodeError as error:
                raise OtherVersionError(self._malformed(error)) from error
            except (OSError, http.client.HTTPException) as error:
                raise self._explained(error) from error

    def repairs(self, after: int = 0, wait: float = 0.0) -> Repairs:
        """Return the repairs after number ``after``; wait for one up to ``wait`` seconds.

        Raises:
            AdminError: see its subclasses.
        """
        query = urlencode({"after": after, "wait": f"{wait:g}"})
        return self._decoded(self._get(f"/v1/repairs?{query}", wait), Repairs)

    def log(self) -> str:
        """Return the last lines of the daemon's log.

        Raises:
            AdminError: see its subclasses.
        """
        return self._get("/v1/log").decode("utf-8", "replace")

    def metrics(self) -> str:
        """Return the daemon's metrics in the text format of Prometheus.

        Raises:
            AdminError: see its subclasses.
        """
        return self._get("/v1/metrics").decode("utf-8", "replace")

    def _get(self, target: str, wait: float = 0.0) -> bytes:
        with self._request(target, wait) as response:
            try:
                return response.read()
            except (OSError, http.client.HTTPException) as error:
                raise self._explained(error) from error

    def _request(self, target: str, wait: float = 0.0) -> http.client.HTTPResponse:
        connection = _Connection(self._path, self._seconds + wait)
        try:
            connection.request("GET", target, headers={"Connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._explained(error) from error
        if response.status == http.client.NOT_FOUND:
            response.close()
            raise OtherVersionError(self._malformed(f"it has no {target}"))
        if response.status != http.client.OK:
            response.close()
            raise NoDaemonError(f"the daemon at {self._path} answered {response.status}: retry")
        return response

    def _decoded(self, body: bytes, wanted: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(body, type=wanted)
        except msgspec.DecodeError as error:
            raise OtherVersionError(self._malformed(error)) from error

    def _malformed(self, reason: object) -> str:
        return f"the daemon at {self._path} is of another version: {reason}"

    def _explained(self, error: Exception) -> AdminError:
        path = self._path
        match error:
            case PermissionError():
                return NotPermittedError(f"{path}: only root may ask the daemon: use sudo")
            case FileNotFoundError():
                return NoDaemonError(
                    f"no daemon: there is no {path}; start svcproxy, run this in its container"
                    " (kubectl exec), or name its socket with --socket"
                )
            case ConnectionRefusedError():
                return NoDaemonError(f"no daemon listens at {path}: it has ended; start svcproxy")
            case TimeoutError():
                return NoDaemonError(f"the daemon at {path} did not answer in {self._seconds:g} s")
            case _:
                return NoDaemonError(f"the daemon at {path} cannot be asked: {error}")


class _Version(msgspec.Struct):
    protocol: int = 0
