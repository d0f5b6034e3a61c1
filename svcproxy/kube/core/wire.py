"""The JSON types of the Kubernetes API: only the fields that svcproxy reads.

Lists and watch events keep their objects as raw bytes, so that a field with a wrong type affects
only its object and not the list that contains it (see ``decoding``). Arrays and objects may be
``null`` wherever the API's Go types accept that. The types follow ``core/v1``, ``discovery/v1``,
``networking/v1`` and ``meta/v1``.
"""

import re

import msgspec

from svcproxy.model.names import Kind


class ParseError(Exception):
    """An API object cannot be used.

    Attributes:
        field: the path of the field, such as ``spec.ports[0].port``; empty for the whole object.
        reason: what is wrong with its value.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class Wire(msgspec.Struct, rename="camel", gc=False):
    """The base of all wire types: camelCase names, and not tracked by the garbage collector."""


class ObjectMeta(Wire):
    """``metadata`` of any object."""

    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    resource_version: str | None = None


class ServicePort(Wire):
    """One entry of a Service's ``spec.ports``."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(Wire):
    """``spec.sessionAffinityConfig.clientIP``."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Wire):
    """``spec.sessionAffinityConfig``."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Wire):
    """``spec`` of a Service."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    ports: list[ServicePort] | None = None
    load_balancer_source_ranges: list[str] | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: int | None = None


class LoadBalancerIngress(Wire):
    """One entry of ``status.loadBalancer.ingress``."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Wire):
    """``status.loadBalancer``."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Wire):
    """``status`` of a Service."""

    load_balancer: LoadBalancerStatus | None = None


class Service(Wire):
    """A Service as the API sends it."""

    kind: str | None = None
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointPort(Wire):
    """One entry of a slice's ``ports``."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointConditions(Wire):
    """``conditions`` of an endpoint; absent conditions have different defaults."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire):
    """One entry of ``hints.forZones`` or ``hints.forNodes``."""

    name: str = ""


class EndpointHints(Wire):
    """``hints`` of an endpoint."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Wire):
    """One entry of a slice's ``endpoints``."""

    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    hints: EndpointHints | None = None


class EndpointSlice(Wire):
    """An EndpointSlice as the API sends it."""

    kind: str | None = None
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    address_type: str | None = None
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class Taint(Wire):
    """One entry of a Node's ``spec.taints``."""

    key: str = ""


class NodeSpec(Wire):
    """``spec`` of a Node."""

    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(Wire):
    """One entry of a Node's ``status.addresses``."""

    type: str = ""
    address: str = ""


class NodeStatus(Wire):
    """``status`` of a Node."""

    addresses: list[NodeAddress] | None = None


class Node(Wire):
    """A Node as the API sends it."""

    kind: str | None = None
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServiceCIDRSpec(Wire):
    """``spec`` of a ServiceCIDR."""

    cidrs: list[str] | None = None


class ServiceCIDR(Wire):
    """A ServiceCIDR as the API sends it."""

    kind: str | None = None
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: ServiceCIDRSpec | None = None


WireObject = Service | EndpointSlice | Node | ServiceCIDR


class ListMeta(Wire):
    """``metadata`` of a list: the version at which a watch continues, and the next page's token."""

    resource_version: str | None = None
    continue_token: str | None = msgspec.field(default=None, name="continue")


class ListPage(Wire):
    """A page of a list with raw items. Go writes ``items`` even if the list is empty."""

    kind: str | None = None
    api_version: str | None = None
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET


class WatchEvent(Wire):
    """A line of a watch stream with a raw object."""

    type: str = ""
    object: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class Status(Wire):
    """The API's description of a failure, in a response body or an ERROR event."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None


class Identity(Wire):
    """The identity of an object that may be malformed elsewhere.

    A field is ``None`` if it cannot be read.
    """

    kind: str | None = None
    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None


TYPES: dict[Kind, type[WireObject]] = {
    Kind.SERVICE: Service,
    Kind.ENDPOINT_SLICE: EndpointSlice,
    Kind.NODE: Node,
    Kind.SERVICE_CIDR: ServiceCIDR,
}
API_VERSIONS = {
    Kind.SERVICE: "v1",
    Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1",
    Kind.NODE: "v1",
    Kind.SERVICE_CIDR: "networking.k8s.io/v1",
}
"""The ``apiVersion`` of each watched kind."""
_MESSAGE_PATTERN = re.compile(r"(?P<reason>.*) - at `\$\.?(?P<field>.*)`", re.DOTALL)


def convert_object(kind: Kind, document: object) -> WireObject:
    """Convert an object of a known kind from decoded YAML or JSON.

    Raises:
        ParseError: a field that svcproxy reads has the wrong type.
    """
    try:
        return msgspec.convert(document, TYPES[kind])
    except msgspec.ValidationError as error:
        raise parse_error(error) from error


def parse_error(error: msgspec.MsgspecError) -> ParseError:
    """Convert msgspec's ``Expected `int`, got `str` - at `$.a.b``` to a ``ParseError``."""
    found = _MESSAGE_PATTERN.fullmatch(str(error))
    if found is None:
        return ParseError("", plain_message(str(error)))
    return ParseError(found["field"], plain_message(found["reason"]))


def plain_message(text: str) -> str:
    """Convert an error message of msgspec to the style of svcproxy's own."""
    # "| null" only says what the decoder accepts. It does not help to correct the value.
    text = text.replace("`", "").replace(" | null", "")
    return text[:1].lower() + text[1:]
