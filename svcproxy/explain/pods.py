"""Asks the API server for the addresses of one pod, with the daemon's credentials."""

import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import msgspec

from svcproxy import limits
from svcproxy.config import Config
from svcproxy.explain.core.trace_arguments import QuestionError, UnknownNameError
from svcproxy.kube.client import Client, TransportError
from svcproxy.kube.credentials import ClientSettings
from svcproxy.kube.source import SourceError
from svcproxy.model.names import NamespacedName

_NOT_FOUND, _UNAUTHORIZED, _FORBIDDEN, _OK = 404, 401, 403, 200


class PodError(QuestionError):
    """The pod cannot be used; the message is one line that names the remedy."""


class PodForbiddenError(PodError):
    """These credentials may not read pods."""


class Pod(msgspec.Struct, frozen=True):
    """A pod.

    Attributes:
        addresses: its canonical addresses, of both families.
        node: the name of its node; empty before it is scheduled.
        host_network: whether it has the addresses of its node.
    """

    addresses: tuple[str, ...]
    node: str = ""
    host_network: bool = False


class _PodIP(msgspec.Struct):
    ip: str = ""


class _Status(msgspec.Struct, rename={"pod_ips": "podIPs"}):
    pod_ips: list[_PodIP] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None


class _Pod(msgspec.Struct):
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


def read_pod(name: NamespacedName, config: Config) -> Pod:
    """Ask the API server for a pod.

    Args:
        name: the pod.
        config: the daemon's flags, which name the API server and the credentials.

    Raises:
        PodError: the API server cannot be asked, or the pod has no address.
        UnknownNameError: there is no such pod.
    """
    remedy = f"give the address of pod {name} instead of its name"
    settings = ClientSettings(
        kubeconfig=config.kubeconfig or "",
        master=config.master or "",
        list_seconds=limits.TRACE_POD_SECONDS,
    )
    try:
        client = Client(settings)
    except SourceError as error:
        raise PodError(f"cannot ask the API server ({error}): {remedy}") from error
    try:
        path = f"/api/v1/namespaces/{name.namespace}/pods/{name.name}"
        with client.get(path, {}, stream=False, idle_seconds=limits.TRACE_POD_SECONDS) as response:
            status = response.status
            body = (
                response.read(limits.TRACE_POD_BYTES, limits.TRACE_POD_SECONDS)
                if status == _OK
                else b""
            )
    except (TransportError, SourceError) as error:
        raise PodError(f"the API server did not answer ({error}): {remedy}") from error
    finally:
        client.close()
    if status == _NOT_FOUND:
        raise UnknownNameError(f"there is no pod {name}")
    if status in {_UNAUTHORIZED, _FORBIDDEN}:
        raise PodForbiddenError(
            f"the daemon's credentials may not read pods (status {status}): {remedy}"
        )
    if status != _OK:
        raise PodError(f"the API server answered {status}: {remedy}")
    return decode_pod(body, name)


def decode_pod(body: bytes, name: NamespacedName) -> Pod:
    """Decode a pod.

    Raises:
        PodError: it is malformed, or has no address yet.
    """
    try:
        found: Any = msgspec.json.decode(body, type=_Pod)
    except msgspec.DecodeError as error:
        raise PodError(f"the API server's answer is no pod: {error}") from error
    addresses = tuple(_canonical(each.ip for each in found.status.pod_ips or ()))
    if not addresses:
        raise PodError(f"pod {name} has no address yet: wait until it runs")
    return Pod(addresses, found.spec.node_name or "", bool(found.spec.host_network))


def _canonical(addresses: Iterable[str]) -> Iterator[str]:
    for text in addresses:
        with contextlib.suppress(ValueError):
            yield str(ip_address(text))
