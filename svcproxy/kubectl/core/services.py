"""``kubectl svcproxy show``: where nodes differ about Services."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from svcproxy.explain.core.documents import Document, Part
from svcproxy.kubectl.core.answers import Answer, by_value, nodes_text


class FrontendSeen(msgspec.Struct, rename="camel"):
    """The part of ``FrontendInfo`` that is compared."""

    address: str = ""
    port: int = 0
    protocol: str = ""
    type: str = ""
    policy: str = ""
    endpoints_used: int = 0
    endpoints_known: int = 0
    verdict: str = ""
    reason: str = ""


class EndpointSeen(msgspec.Struct, rename="camel"):
    """The part of ``EndpointInfo`` that is compared."""

    address: str = ""
    port: int = 0
    node: str = ""
    cluster: bool = False
    local: bool = False
    text: str = ""


class PortSeen(msgspec.Struct, rename="camel"):
    """The part of ``PortDetail`` that is compared; in a list, ports have no endpoints."""

    name: str = ""
    family: str = ""
    frontends: list[FrontendSeen] = []
    endpoints: list[EndpointSeen] = []
    kernel_differences: int | None = None


class ServiceSeen(msgspec.Struct, rename="camel"):
    """The part of ``ServiceSummary`` and of ``ServiceDetail`` that is compared."""

    namespace: str = ""
    name: str = ""
    ports: list[PortSeen] = []
    problems: list[str] = []


class ListSeen(msgspec.Struct, rename="camel"):
    """The part of ``ServiceList`` that is compared."""

    services: list[ServiceSeen] = []


class FrontendKey(NamedTuple):
    """The identity of a frontend in the cluster; sorts as it is shown."""

    service: str
    family: str
    port_name: str
    type: str
    address: str
    port: int
    protocol: str

    @property
    def text(self) -> str:
        """The address and port: ``10.96.0.10:80/tcp``, ``node port 30080/tcp``."""
        end = f"{self.port}/{self.protocol.lower()}"
        if not self.address:
            return f"node port {end} ({self.family})"
        return f"[{self.address}]:{end}" if ":" in self.address else f"{self.address}:{end}"


class ClusterFrontend(Part, frozen=True):
    """A frontend on all nodes.

    Attributes:
        service: ``namespace/name`` of the Service.
        text: the address and port.
        policy: the traffic policy.
        used: the numbers of endpoints that nodes use, the smallest and the largest.
        known: the number of endpoints that most nodes know.
        unserved: the nodes that use no endpoint, while others do.
        differs: where nodes disagree, in lines. With the Local policy, and with topology hints,
            nodes use different endpoints; that is no disagreement.
        nodes: the verdict and the number of used endpoints of each node.
    """

    service: str
    text: str
    policy: str
    used: tuple[int, int]
    known: int
    unserved: tuple[str, ...]
    differs: tuple[str, ...]
    nodes: Mapping[str, str]


class ClusterEndpoint(Part, frozen=True):
    """An endpoint of a Service on all nodes.

    Attributes:
        endpoint: the address and port.
        node: its node.
        used_by: the nodes that use it for any frontend.
        reasons: why the others do not, in words, with the nodes.
    """

    endpoint: str
    node: str
    used_by: tuple[str, ...]
    reasons: Mapping[str, tuple[str, ...]]


class ClusterServices(Document, frozen=True, kw_only=True):
    """The answer of ``kubectl svcproxy show``.

    Attributes:
        nodes: the nodes that answered.
        frontends: the frontends of all Services, or of one.
        endpoints: the endpoints, for one Service.
        missing: the nodes that did not answer, with the reasons.
        answers: the documents of the nodes.
    """

    nodes: tuple[str, ...]
    frontends: tuple[ClusterFrontend, ...]
    endpoints: tuple[ClusterEndpoint, ...] = ()
    missing: Mapping[str, str]
    answers: Mapping[str, Any] = {}


def frontends_of(services: Mapping[str, Sequence[ServiceSeen]]) -> Iterator[ClusterFrontend]:
    """Yield the frontends of all nodes, sorted.

    Args:
        services: the Services that each node knows.
    """
    seen: dict[FrontendKey, dict[str, FrontendSeen]] = {}
    for node, known in services.items():
        for key, frontend in _frontends(known):
            seen.setdefault(key, {})[node] = frontend
    for key, by_node in sorted(seen.items()):
        yield _merged(key, by_node, sorted(services))


def _frontends(services: Sequence[ServiceSeen]) -> Iterator[tuple[FrontendKey, FrontendSeen]]:
    for service in services:
        for port in service.ports:
            for found in port.frontends:
                yield (
                    FrontendKey(
                        f"{service.namespace}/{service.name}",
                        port.family,
                        port.name,
                        found.type,
                        found.address,
                        found.port,
                        found.protocol,
                    ),
                    found,
                )


def _merged(
    key: FrontendKey, by_node: Mapping[str, FrontendSeen], nodes: Sequence[str]
) -> ClusterFrontend:
    used = [found.endpoints_used for found in by_node.values()]
    common = by_value({node: found.endpoints_known for node, found in by_node.items()})
    return ClusterFrontend(
        key.service,
        key.text,
        next(iter(by_node.values())).policy,
        (min(used), max(used)),
        common[0][0],
        tuple(sorted(n for n, f in by_node.items() if max(used) and not f.endpoints_used)),
        tuple(_differs(by_node, nodes)),
        {node: f"{f.verdict}, {f.endpoints_used} endpoints" for node, f in by_node.items()},
    )


def _differs(by_node: Mapping[str, FrontendSeen], nodes: Sequence[str]) -> Iterator[str]:
    if missing := [node for node in nodes if node not in by_node]:
        yield f"{nodes_text(missing, len(nodes))} does not have it"
    yield from _others({n: f"has policy {f.policy}" for n, f in by_node.items()}, len(nodes))
    known = {n: f"knows {f.endpoints_known} endpoints" for n, f in by_node.items()}
    yield from _others(known, len(nodes))
    policies = {found.policy for found in by_node.values()}
    if policies == {"Cluster"}:
        yield from _others({n: f"does {f.verdict}" for n, f in by_node.items()}, len(nodes))


def _others(values: Mapping[str, str], total: int) -> Iterator[str]:
    """Say which nodes differ from most, and how."""
    groups = by_value(values)
    for text, nodes in groups[1:]:
        first, where = groups[0]
        yield f"{nodes_text(nodes, total)} {text}, {nodes_text(where, total)} {first}"


def endpoints_of(services: Mapping[str, ServiceSeen]) -> Iterator[ClusterEndpoint]:
    """Yield the endpoints of a Service, sorted, with the nodes that use them.

    Args:
        services: the Service as each node knows it.
    """
    uses: dict[tuple[str, int, str], dict[str, bool]] = {}
    reasons: dict[tuple[str, int, str], dict[str, str]] = {}
    for node, service in services.items():
        for port in service.ports:
            for found in port.endpoints:
                key = (found.address, found.port, found.node)
                used = found.cluster or found.local
                uses.setdefault(key, {})[node] = used or uses.get(key, {}).get(node, False)
                if not used:
                    reasons.setdefault(key, {})[node] = found.text or "not used"
    for key, by_node in sorted(uses.items()):
        why = {n: reasons.get(key, {}).get(n, "") for n, used in by_node.items() if not used}
        why |= {node: "not known" for node in services if node not in by_node}
        address, number, where = key
        shown = f"[{address}]" if ":" in address else address
        yield ClusterEndpoint(
            f"{shown}:{number}" if number else shown,
            where,
            tuple(sorted(node for node, used in by_node.items() if used)),
            {text: tuple(nodes) for text, nodes in by_value(why)},
        )


def missing_of(answers: Sequence[Answer[Any]]) -> dict[str, str]:
    """Return the nodes that did not answer, with the reasons."""
    return {answer.node: answer.problem for answer in answers if answer.document is None}
