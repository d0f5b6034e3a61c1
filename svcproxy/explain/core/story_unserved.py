"""What happens to packets that hit no frontend."""

from ipaddress import ip_address, ip_network

from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.explain.core.story_addresses import Addresses
from svcproxy.explain.core.story_types import Ending, Question, Situation, differences, place
from svcproxy.model.serviceport import FrontendKind, Verdict

_LOOPBACK = ip_network("127.0.0.0/8")

Answer = tuple[Ending, str]
"""What becomes of the packet, and why."""


def unserved(question: Question, situation: Situation, addresses: Addresses) -> Answer:
    """Return what happens to a packet that hits no frontend.

    Args:
        question: the packet; its addresses are canonical.
        situation: the mode and its settings.
        addresses: the frontends.
    """
    answer = (
        at_protected_localhost(question, situation, addresses)
        or _at_node_port(question, situation, addresses)
        or _in_service_range(question, situation, addresses)
        or _at_assigned_address(question, situation, addresses)
    )
    if answer is not None:
        return answer
    return Ending.NOT_A_SERVICE, _elsewhere(question, situation, addresses)


def at_protected_localhost(
    question: Question, situation: Situation, addresses: Addresses
) -> Answer | None:
    """Packets of neighbours must not reach programs that listen on 127.0.0.0/8.

    Only connections to node ports with endpoints are exempt.
    """
    if ip_address(question.destination) not in _LOOPBACK or not addresses.serves_localhost:
        return None
    foreign = ip_address(question.source) not in _LOOPBACK
    if situation.mode != "iptables":
        foreign = not question.sent_by_node
    if not foreign:
        return None
    return Ending.DROPPED, "127.0.0.0/8 is protected from packets of other machines"


def _at_node_port(question: Question, situation: Situation, addresses: Addresses) -> Answer | None:
    """A node port without endpoints, at an address that does not serve node ports."""
    if not differences(situation.mode).refuses_at_all_node_addresses:
        return None
    hit = addresses.at_port("", question.port, question.protocol)
    if hit is None or not addresses.is_own(question.destination):
        return None
    match hit[1].verdict:
        case Verdict.REJECT:
            return Ending.REFUSED, f"node port of {hit[0].name}, which has no endpoint on any node"
        case Verdict.DROP:
            return Ending.DROPPED, f"node port of {hit[0].name}, which has no endpoint on this node"
        case Verdict.FORWARD:
            return None


def _in_service_range(
    question: Question, situation: Situation, addresses: Addresses
) -> Answer | None:
    """Other ports of cluster IPs, and unassigned cluster IPs."""
    settings, address = situation.settings, question.destination
    if not differences(situation.mode).checks_cluster_ips:
        return None
    if addresses.is_own(address) and not question.sent_by_node:
        return None
    owners = [p for p, f in addresses.at(address) if f.kind is FrontendKind.CLUSTER_IP]
    if owners:
        where = place(address, question.port)
        return Ending.REFUSED, f"{owners[0].name.service} has no port at {where}"
    ranges = settings.service_cidrs if isinstance(settings, NftablesSettings) else ()
    for cidr in ranges:
        if ip_address(address) in ip_network(cidr):
            return Ending.DROPPED, f"in the ServiceCIDR {cidr}, but the cluster IP of no Service"
    return None


def _at_assigned_address(
    question: Question, situation: Situation, addresses: Addresses
) -> Answer | None:
    """Addresses that IPVS mode assigns to the node serve only the ports of Services."""
    if situation.mode != "ipvs" or not addresses.is_assigned(question.destination):
        return None
    owner = addresses.at(question.destination)[0][0].name.service
    if any(number == question.port for number, _ in addresses.health_check_ports()):
        return None
    where = place(question.destination, question.port)
    return Ending.REFUSED, f"{owner} has no port at {where}, and no other program may listen there"


def _elsewhere(question: Question, situation: Situation, addresses: Addresses) -> str:
    """Say why the packet is none of a Service's, with what comes closest."""
    address, number = question.destination, question.port
    node_port = addresses.at_port("", number, question.protocol)
    if node_port is not None and addresses.is_own(address):
        name = node_port[0].name
        if ip_address(address).is_loopback:
            return f"node port of {name}, but node ports are not served on localhost"
        ranges = ", ".join(situation.settings.node_port_ranges)
        return f"node port of {name}, but {address} is not in --nodeport-addresses ({ranges})"
    owners = addresses.at(address)
    if owners and address:
        port, frontend = owners[0]
        return (
            f"{address} is a {frontend.kind.value} of {port.name.service}, but not at port {number}"
        )
    for health_check_port, port in addresses.health_check_ports():
        if number == health_check_port and addresses.is_own(address):
            return f"health-check node port of {port.name.service}: svcproxy itself answers"
    return "no Service has this address and port"
