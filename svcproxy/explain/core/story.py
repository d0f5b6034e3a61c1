"""Tells what a node does with a packet, and why, from Service ports and settings.

No rules are involved: the answer follows from what ``docs/behaviour.md`` guarantees. It can
therefore be compared with a trace through rules (``story_check``).
"""

from ipaddress import ip_address, ip_network

from msgspec import structs

from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.config import LocalMode
from svcproxy.explain.core.story_addresses import Addresses
from svcproxy.explain.core.story_types import (
    Candidate,
    Client,
    Ending,
    Question,
    Situation,
    Story,
    differences,
    is_external,
)
from svcproxy.explain.core.story_unserved import at_protected_localhost, unserved
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict


def tell(question: Question, situation: Situation) -> Story:
    """Return what the node does with a packet.

    Args:
        question: the packet.
        situation: the Service ports, the mode, its settings, and the node's addresses.
    """
    return _Teller(question, situation).tell()


class _Teller:
    """Answers one question."""

    def __init__(self, question: Question, situation: Situation) -> None:
        source, destination = map(str, map(ip_address, (question.source, question.destination)))
        self.question = structs.replace(question, source=source, destination=destination)
        self.situation = situation
        self.settings = situation.settings
        self.mode = differences(situation.mode)
        self.addresses = Addresses(situation)
        self.client, classified = self._classify()
        self.story = Story(self.question, self.client, classified, Ending.NOT_A_SERVICE, "")

    def tell(self) -> Story:
        question = self.question
        hit = self.addresses.find(question.destination, question.port, question.protocol)
        if hit is None:
            ending, reason = unserved(question, self.situation, self.addresses)
            return structs.replace(self.story, ending=ending, reason=reason)
        port, frontend = hit
        endpoints, policy = self._choose_list(port, frontend)
        self.story = structs.replace(self.story, port=port, frontend=frontend, policy=policy)
        if not self._is_admitted(port, frontend):
            return self._end(Ending.DROPPED, "not in the source ranges of the Service")
        if frontend.verdict is Verdict.REJECT or not endpoints:
            return self._without_endpoints(frontend)
        candidates = tuple(self._candidate(e, frontend, 1 / len(endpoints)) for e in endpoints)
        self.story = structs.replace(self.story, candidates=candidates)
        return self._end(Ending.DELIVERED, "")

    def _end(self, ending: Ending, reason: str) -> Story:
        return structs.replace(self.story, ending=ending, reason=reason)

    def _classify(self) -> tuple[Client, str]:
        """Classify the client, in the order in which rules do: pods first, then the node."""
        local, source = self.settings.local_traffic, self.question.source
        if local.source:
            option = "pod CIDR of this node"
            if self.situation.detection is LocalMode.CLUSTER_CIDR:
                option = "cluster CIDR"
            if ip_address(source) in ip_network(local.source):
                return Client.POD, f"{option} {local.source} contains it"
            why = f"not in {option} {local.source}"
        elif local.interface:
            if _matches(local.interface, self.question.interface):
                return Client.POD, f"it arrives on {self.question.interface} ({local.interface})"
            why = f"it does not arrive on {local.interface}"
        else:
            why = "no detection of pods is configured"
        if self.question.sent_by_node or self.addresses.is_local(source):
            return Client.NODE, f"the node itself; {why}"
        return Client.OUTSIDE, why

    def _is_admitted(self, port: ServicePort, frontend: Frontend) -> bool:
        """Apply the source ranges of a load balancer."""
        restricted = frontend.is_load_balancer
        if not self.mode.restricts_every_role:
            restricted = frontend.kind is FrontendKind.LOAD_BALANCER
        if not (restricted and port.source_ranges):
            return True
        if frontend.verdict is Verdict.REJECT and not self.mode.restricts_without_endpoints:
            return True
        ranges, source = list(map(ip_network, port.source_ranges)), ip_address(self.question.source)
        node = self.settings.node_address
        admits_node = bool(node) and any(ip_address(node) in found for found in ranges)
        own = {ip_address(f.address) for f in port.frontends if f.is_load_balancer}
        if self.question.sent_by_node and source in own and self.mode.assigns_addresses:
            # The node's packets to an address that it has itself have that address as their source.
            admitted, what = admits_node, f"the node's address {node}"
        elif admits_node and source in own:
            admitted, what = True, f"the node's address {node}"
        else:
            admitted, what = any(source in found for found in ranges), str(source)
        word = "contain" if admitted else "do not contain"
        text = f"source ranges {', '.join(port.source_ranges)} {word} {what}"
        self.story = structs.replace(self.story, admitted=text)
        return admitted

    def _choose_list(
        self, port: ServicePort, frontend: Frontend
    ) -> tuple[tuple[Endpoint, ...], str]:
        """Return the endpoints of the traffic policy for this client, and the policy in words."""
        name = "internalTrafficPolicy" if not is_external(frontend) else "externalTrafficPolicy"
        if not frontend.local:
            return port.cluster_endpoints, f"{name} Cluster"
        if is_external(frontend) and self.client is not Client.OUTSIDE:
            who = "pods reach" if self.client is Client.POD else "the node reaches"
            return port.cluster_endpoints, f"{name} Local, but {who} all endpoints"
        return port.local_endpoints, f"{name} Local: only endpoints on this node"

    def _without_endpoints(self, frontend: Frontend) -> Story:
        protected = at_protected_localhost(self.question, self.situation, self.addresses)
        if protected is not None:
            return self._end(*protected)
        if frontend.verdict is not Verdict.REJECT:
            return self._end(Ending.DROPPED, "no endpoint on this node")
        leaves = (
            is_external(frontend)
            and self.mode.sends_unserved_out
            and self.question.sent_by_node
            and not self.addresses.is_local(self.question.destination)
        )
        if leaves:
            return self._end(
                Ending.NOT_A_SERVICE,
                "no endpoint on any node; packets of the node to an external address then leave it",
            )
        return self._end(Ending.REFUSED, "no endpoint on any node")

    def _candidate(self, endpoint: Endpoint, frontend: Frontend, probability: float) -> Candidate:
        masqueraded, why = self._masquerading(endpoint, frontend)
        if masqueraded and not self.question.sent_by_node and self._is_here(endpoint):
            masqueraded, why = False, "the endpoint is this node, so the packet does not leave it"
        return Candidate(endpoint, probability, masqueraded, why)

    def _is_here(self, endpoint: Endpoint) -> bool:
        return self.addresses.is_local(str(ip_address(endpoint.address)))

    def _masquerading(self, endpoint: Endpoint, frontend: Frontend) -> tuple[bool, str]:
        """Decide whether the source is masqueraded, and say why."""
        if is_external(frontend):
            masqueraded, why = self._masquerading_external(frontend)
        else:
            masqueraded, why = self._masquerading_cluster_ip(frontend)
        same = ip_address(endpoint.address) == ip_address(self.question.source)
        if not masqueraded and same and self.addresses.is_hairpin(endpoint.address):
            return True, "hairpin: the endpoint is the client itself"
        return masqueraded, why

    def _masquerading_external(self, frontend: Frontend) -> tuple[bool, str]:
        if not frontend.local:
            return True, "externalTrafficPolicy Cluster: replies must return through this node"
        if self.client is Client.NODE:
            return True, "the node's own packets to an external address"
        if self.client is Client.POD:
            return False, "a pod"
        return False, "externalTrafficPolicy Local"

    def _masquerading_cluster_ip(self, frontend: Frontend) -> tuple[bool, str]:
        local = self.settings.local_traffic
        if self.settings.masquerade_all:
            return True, "--masquerade-all"
        if local and not local.matches_all:
            if self.client is Client.POD:
                return False, "a pod"
            who = "the node" if self.client is Client.NODE else "from outside the cluster"
            return True, f"{who}, to a cluster IP"
        if isinstance(self.settings, IpvsSettings) and self.question.source == frontend.address:
            return True, "the node's source address is the cluster IP, to which pods cannot reply"
        if local:
            return False, "a pod"
        return False, "no detection of pods is configured"


def _matches(pattern: str, interface: str) -> bool:
    if pattern.endswith("+"):
        return bool(interface) and interface.startswith(pattern[:-1])
    return interface == pattern
