"""The Services of a synthetic cluster, as API objects.

Most Services have a cluster IP, one port and a few endpoints; some have a node port, and
optionally some have 1,000 endpoints. Addresses are random, as if allocated by the API server, and
the same in every run. Two kinds of Service have endpoints that answer:

- the **dialled** ones, distributed over the whole list, are used to time connections;
- the **probe** has one endpoint, which the benchmark moves. Its name is the last one in every
  list, so that a proxy that serves it has received everything.
"""

import random
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from zlib import crc32

import msgspec

from testbed import manifests
from testbed.manifests import Object

SERVICE_RANGE = IPv4Network("10.96.0.0/12")
NODE_PORTS = range(30000, 32768)
PORT = 80
TARGET_PORT = 8080
PROBE_NAMESPACE, PROBE_NAME = "zzz-probe", "probe"

_NAMESPACES = 25
_NODES = 250
_PODS_PER_NODE = 253
_LARGE = 1000
_SLICE = 100  # the EndpointSlice controller's limit of endpoints per slice
_CREATED = "2026-01-01T00:00:00Z"


class Size(msgspec.Struct, frozen=True):
    """The size of a cluster: Services x endpoints, written as ``10000x5``."""

    services: int
    endpoints: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Parse ``SERVICESxENDPOINTS``.

        Raises:
            ValueError: the text has another form.
        """
        services, _, endpoints = text.strip().partition("x")
        size = cls(int(services), int(endpoints or 1))
        if not (10 <= size.services <= 200_000 and 1 <= size.endpoints <= _LARGE):
            raise ValueError(f"{text}: 10 to 200,000 Services with 1 to {_LARGE} endpoints")
        return size

    def __str__(self) -> str:
        return f"{self.services}x{self.endpoints}"


class Shape(msgspec.Struct, frozen=True):
    """The features of the Services.

    Attributes:
        node_ports: the share of Services with a node port (there are 2,768 at most).
        large: how many Services have 1,000 endpoints.
        headless: additional headless Services per Service, which a service proxy ignores.
        dialled: how many Services have endpoints that answer, at most half of all.
        seed: the seed of all random choices.
    """

    node_ports: float = 0.05
    large: int = 2
    headless: float = 0.02
    dialled: int = 200
    seed: int = 7


class Target(msgspec.Struct, frozen=True):
    """A Service to connect to."""

    name: str
    address: str


class Population:
    """All Services of a cluster with their EndpointSlices.

    Args:
        size: the numbers of Services and endpoints.
        pods: the addresses of at least two pods that answer on the target port. Dialled Services
            have as many of them as endpoints as ``size`` says, or all if there are fewer.
        shape: the features of the Services.
    """

    def __init__(self, size: Size, pods: Sequence[str], shape: Shape = Shape()) -> None:  # noqa: B008
        if len(pods) < 2:
            raise ValueError("two pods are needed, so that the probe can move")
        self.size = size
        self.shape = shape
        self.pods = tuple(pods)
        chance = random.Random(f"{shape.seed}-{size}")
        # The first and the last address of the range are never allocated to a Service.
        numbers = range(1, SERVICE_RANGE.num_addresses - 1)
        chosen = chance.sample(numbers, size.services)
        self.addresses = [str(SERVICE_RANGE[number]) for number in chosen]
        ordinary = range(size.services - 1)
        self._dialled = set(chance.sample(ordinary, min(shape.dialled, size.services // 2)))
        others = [number for number in ordinary if number not in self._dialled]
        self._large = set(chance.sample(others, min(shape.large, len(others))))
        self.ordinary = [number for number in others if number not in self._large]
        """The numbers of the Services that are neither dialled nor large."""
        published = min(round(size.services * shape.node_ports), len(NODE_PORTS))
        ports = chance.sample(NODE_PORTS, published)
        self._node_ports = dict(zip(chance.sample(ordinary, published), ports, strict=True))

    @property
    def probe(self) -> Target:
        """The probe Service."""
        return Target(f"{PROBE_NAMESPACE}/{PROBE_NAME}", self.addresses[-1])

    @property
    def dialled(self) -> list[Target]:
        """The other Services with endpoints that answer."""
        return [
            Target("/".join(self._name(number)), self.addresses[number])
            for number in sorted(self._dialled)
        ]

    def objects(self) -> Iterator[Object]:
        """Yield all Services and EndpointSlices."""
        for number in range(self.size.services - 1):
            service = self._service(number)
            yield service
            yield from _slices(service, self._endpoints(number))
        for number in range(round(self.size.services * self.shape.headless)):
            yield from _headless(number)
        yield self._probe_service()
        yield self.probe_slice(self.pods[0])

    def moved_slice(self, number: int, generation: int) -> Object:
        """Return the slice of an ordinary Service; its last endpoint depends on ``generation``."""
        endpoints = self._endpoints(number)
        endpoints[-1] = f"10.245.{generation % 250}.{number % 250 + 2}"
        return next(_slices(self._service(number), endpoints))

    def probe_slice(self, pod: str) -> Object:
        """Return the probe's EndpointSlice with this pod as its endpoint."""
        return next(_slices(self._probe_service(), [pod]))

    def _name(self, number: int) -> tuple[str, str]:
        return f"team-{number % _NAMESPACES:02d}", f"service-{number:06d}"

    def _service(self, number: int) -> Object:
        namespace, name = self._name(number)
        node_port = self._node_ports.get(number)
        return _registered(
            manifests.service(
                name,
                [self.addresses[number]],
                [manifests.port(PORT, name="http", target=TARGET_PORT, node_port=node_port)],
                namespace=namespace,
                type="NodePort" if node_port else "ClusterIP",
                selector={"app": name},
                sessionAffinity="None",
                internalTrafficPolicy="Cluster",
            )
        )

    def _probe_service(self) -> Object:
        return _registered(
            manifests.service(
                PROBE_NAME,
                [self.addresses[-1]],
                [manifests.port(PORT, name="http", target=TARGET_PORT)],
                namespace=PROBE_NAMESPACE,
            )
        )

    def _endpoints(self, number: int) -> list[str]:
        if number in self._dialled:
            first = number % len(self.pods)
            rotated = self.pods[first:] + self.pods[:first]
            return list(rotated[: self.size.endpoints])
        endpoints = _LARGE if number in self._large else self.size.endpoints
        first = number * self.size.endpoints
        return [_pod_address(first + index) for index in range(endpoints)]


def _headless(number: int) -> Iterator[Object]:
    """Yield the objects of a headless Service, with the label that service proxies skip."""
    service = manifests.service(
        f"headless-{number:06d}", ["None"], [manifests.port(PORT, name="http")], namespace="quiet"
    )
    yield _registered(service)
    for piece in _slices(service, [_pod_address(number)]):
        piece["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
        yield piece


def _pod_address(number: int) -> str:
    """Return the address of a pod on another node; in large clusters, Services share pods."""
    node, host = divmod(number % (_NODES * _PODS_PER_NODE), _PODS_PER_NODE)
    return f"10.244.{node + 2}.{host + 2}"


def _slices(service: Object, addresses: Sequence[str]) -> Iterator[Object]:
    name = service["metadata"]["name"]
    for index, start in enumerate(range(0, len(addresses), _SLICE)):
        endpoints = [
            manifests.endpoint(
                address,
                node="worker-" + address.split(".")[2],
                zone="zone-" + "abc"[int(address.split(".")[2]) % 3],
                ready=True,
                serving=True,
                terminating=False,
            )
            | {"targetRef": {"kind": "Pod", "name": f"{name}-{start + offset}"}}
            for offset, address in enumerate(addresses[start : start + _SLICE])
        ]
        yield _registered(manifests.endpoint_slice(service, endpoints, suffix=f"{index}"))


def _registered(obj: Object) -> Object:
    """Add the metadata of real objects, which a client must skip when it decodes them."""
    metadata = obj["metadata"]
    name = metadata["name"]
    metadata["uid"] = f"00000000-0000-4000-8000-{crc32(name.encode()):012x}"
    metadata["creationTimestamp"] = _CREATED
    metadata["generation"] = 1
    labels = {"app": name, "endpointslice.kubernetes.io/managed-by": "controller"}
    metadata["labels"] = labels | metadata.get("labels", {})
    return obj
