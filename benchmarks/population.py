"""The Services of a made-up cluster, as API objects.

Most Services have a cluster IP, one port and a handful of endpoints; some have a node port, and
some, if asked for, a thousand endpoints. Addresses are random, as the API server allocates them,
and the same in every run. Two kinds of Service have endpoints that answer:

- the **dialled** ones, spread over the whole list, stand for any Service when a connection is to
  be timed;
- the **probe**, whose one endpoint the benchmark moves. Its name comes last in every list, so
  that whoever serves it has everything.
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
_SLICE = 100  # how many endpoints the EndpointSlice controller puts into one slice
_CREATED = "2026-01-01T00:00:00Z"


class Size(msgspec.Struct, frozen=True):
    """How large a cluster is; its text is ``10000x5``."""

    services: int
    endpoints: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read ``SERVICESxENDPOINTS``.

        Raises:
            ValueError: it is something else.
        """
        services, _, endpoints = text.strip().partition("x")
        size = cls(int(services), int(endpoints or 1))
        if not (10 <= size.services <= 200_000 and 1 <= size.endpoints <= _LARGE):
            raise ValueError(f"{text}: 10 to 200,000 Services with 1 to {_LARGE} endpoints")
        return size

    def __str__(self) -> str:
        return f"{self.services}x{self.endpoints}"


class Shape(msgspec.Struct, frozen=True):
    """What the Services are like.

    Attributes:
        node_ports: the share of Services with a node port (there are 2,768 at most).
        large: how many Services have 1,000 endpoints.
        headless: for every Service, so many headless ones more, of no concern to a service proxy.
        dialled: how many Services have endpoints that answer, at most half of all.
        seed: decides about all that is random.
    """

    node_ports: float = 0.05
    large: int = 2
    headless: float = 0.02
    dialled: int = 200
    seed: int = 7


class Target(msgspec.Struct, frozen=True):
    """A Service to dial."""

    name: str
    address: str


class Population:
    """All Services of a cluster with their EndpointSlices.

    Args:
        size: how many.
        pods: the addresses of pods that answer on the target port; at least two. The dialled
            Services have as many of them as the size asks for, as far as there are enough.
        shape: what they are like.
    """

    def __init__(self, size: Size, pods: Sequence[str], shape: Shape = Shape()) -> None:  # noqa: B008
        if len(pods) < 2:
            raise ValueError("two pods are needed, so that the probe can move")
        self.size = size
        self.shape = shape
        self.pods = tuple(pods)
        chance = random.Random(f"{shape.seed}-{size}")
        # Neither the network's own address nor its last one is ever given to a Service.
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
        """The other Services that answer."""
        return [
            Target("/".join(self._name(number)), self.addresses[number])
            for number in sorted(self._dialled)
        ]

    def objects(self) -> Iterator[Object]:
        """Every Service and EndpointSlice."""
        for number in range(self.size.services - 1):
            service = self._service(number)
            yield service
            yield from _slices(service, self._endpoints(number))
        for number in range(round(self.size.services * self.shape.headless)):
            yield from _headless(number)
        yield self._probe_service()
        yield self.probe_slice(self.pods[0])

    def moved_slice(self, number: int, generation: int) -> Object:
        """The slice of an ordinary Service, its last endpoint on another address each time."""
        endpoints = self._endpoints(number)
        endpoints[-1] = f"10.245.{generation % 250}.{number % 250 + 2}"
        return next(_slices(self._service(number), endpoints))

    def probe_slice(self, pod: str) -> Object:
        """The probe's EndpointSlice with this pod behind it."""
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
    """A headless Service, with the labels that tell service proxies to pass it over."""
    service = manifests.service(
        f"headless-{number:06d}", ["None"], [manifests.port(PORT, name="http")], namespace="quiet"
    )
    yield _registered(service)
    for piece in _slices(service, [_pod_address(number)]):
        piece["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
        yield piece


def _pod_address(number: int) -> str:
    """A pod on another node; in very large clusters, pods serve several Services."""
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
    """Add what an API server would: nobody needs it here, but everybody has to read past it."""
    metadata = obj["metadata"]
    name = metadata["name"]
    metadata["uid"] = f"00000000-0000-4000-8000-{crc32(name.encode()):012x}"
    metadata["creationTimestamp"] = _CREATED
    metadata["generation"] = 1
    labels = {"app": name, "endpointslice.kubernetes.io/managed-by": "controller"}
    metadata["labels"] = labels | metadata.get("labels", {})
    return obj
