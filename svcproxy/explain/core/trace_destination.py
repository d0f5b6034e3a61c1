"""Finds the address and port that TO of ``svcproxy trace`` names."""

from difflib import get_close_matches
from typing import NamedTuple

from svcproxy.explain.core.story_addresses import Addresses
from svcproxy.explain.core.story_types import Situation
from svcproxy.explain.core.trace_arguments import QuestionError, Target, UnknownNameError
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import Service, ServicePortSpec


class Destination(NamedTuple):
    """Where the packet goes."""

    address: str
    port: int
    protocol: Protocol


def choose_family(view: NodeView, target: Target, named: IPFamily | None) -> FamilyView:
    """Return the family to trace in: the one that is named, else that of the first cluster IP.

    Raises:
        UnknownNameError: the node does not serve the family.
    """
    wanted = named
    if wanted is None and target.service is not None:
        service = _find_service(view, target.service)
        six = bool(service.cluster_ips) and ":" in service.cluster_ips[0]
        wanted = IPFamily.IPV6 if six else IPFamily.IPV4
    if wanted is None:
        wanted = next(iter(view.families), IPFamily.IPV4)
    if wanted not in view.families:
        served = " and ".join(view.families) or "no family yet"
        raise UnknownNameError(f"this node does not serve {wanted}: it serves {served}")
    return view.families[wanted]


def find_destination(
    view: NodeView, about: FamilyView, target: Target, situation: Situation
) -> Destination:
    """Return the address, port and protocol that TO names.

    Raises:
        UnknownNameError: there is no such Service or port.
        QuestionError: the node has no address of the family.
    """
    if target.service is not None:
        return _of_service(view, about, target)
    address = target.address or _node_address(about)
    if target.protocol is not None:
        return Destination(address, target.port, target.protocol)
    addresses = Addresses(situation)
    served = [p for p in Protocol if addresses.find(address, target.port, p)]
    protocol = served[0] if len(served) == 1 else Protocol.TCP
    return Destination(address, target.port, protocol)


def _node_address(about: FamilyView) -> str:
    if about.settings.node_address:
        return about.settings.node_address
    six = about.family is IPFamily.IPV6
    for address in about.state.node.addresses if about.state.node else ():
        if (":" in address) is six:
            return address
    raise QuestionError(f"the node has no known {about.family} address: name one instead of node")


def _find_service(view: NodeView, name: NamespacedName) -> Service:
    for about in view.families.values():
        if name in about.state.services:
            return about.state.services[name]
    known = {str(each) for about in view.families.values() for each in about.state.services}
    near = get_close_matches(str(name), known, n=3)
    by_name = sorted(each for each in known if each.partition("/")[2] == name.name)
    found = list(dict.fromkeys([*by_name[:3], *near]))
    hint = f"did you mean {' or '.join(found)}?" if found else "svcproxy show lists all Services"
    raise UnknownNameError(f"there is no Service {name} with a cluster IP: {hint}")


def _of_service(view: NodeView, about: FamilyView, target: Target) -> Destination:
    assert target.service is not None, "the caller checks it"
    service = about.state.services.get(target.service)
    if service is None:
        _find_service(view, target.service)
        raise UnknownNameError(f"Service {target.service} has no {about.family} address")
    six = about.family is IPFamily.IPV6
    address = next(a for a in service.cluster_ips if (":" in a) is six)
    spec = _find_port(service, target)
    if spec is None:
        return Destination(address, target.port, target.protocol or _only_protocol(service))
    return Destination(address, spec.port, spec.protocol)


def _find_port(service: Service, target: Target) -> ServicePortSpec | None:
    """Return the port of a Service; ``None`` if a number is none of its ports."""
    found = [
        spec
        for spec in service.ports
        if (spec.name == target.port_name if target.port_name else spec.port == target.port)
        and target.protocol in {None, spec.protocol}
    ]
    if not found and target.port_name:
        ports = ", ".join(f"{s.name or s.port}/{s.protocol.keyword}" for s in service.ports)
        raise UnknownNameError(f"{service.name} has no port {target.port_name}: it has {ports}")
    return min(found, key=lambda spec: list(Protocol).index(spec.protocol), default=None)


def _only_protocol(service: Service) -> Protocol:
    protocols = {spec.protocol for spec in service.ports}
    return next(iter(protocols)) if len(protocols) == 1 else Protocol.TCP
