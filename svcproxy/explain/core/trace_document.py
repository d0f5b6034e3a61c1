"""The document of ``svcproxy trace``."""

from collections.abc import Iterator, Mapping

from svcproxy.explain.core.documents import Document, Part
from svcproxy.explain.core.node_summary import KernelComparison, NodeSummary, node_summary
from svcproxy.explain.core.story_types import Client, Ending, is_external, place
from svcproxy.explain.core.trace_answer import Answer, Traced
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.model.serviceport import Verdict
from svcproxy.state.reasons import EndpointUse, endpoint_uses

UNREACHABLE = "unreachable: the node has no route"
"""``TracedEndpoint.route`` of an endpoint that packets cannot get to."""

_SECONDS_PER = ((86400, "d"), (3600, "h"), (60, "min"))


class TracedPacket(Part, frozen=True, kw_only=True):
    """The first packet of a connection.

    Attributes:
        source: the source address.
        source_port: the source port; absent if none was given.
        destination: the destination address.
        port: the destination port.
        protocol: the protocol.
        interface: the interface on which it arrives; absent if the node itself sends it.
        client: ``pod``, ``node`` or ``outside``.
        classified: the setting that decides it, in words.
    """

    source: str
    destination: str
    port: int
    protocol: Protocol
    client: Client
    classified: str
    source_port: int = 0
    interface: str = ""


class TracedFrontend(Part, frozen=True, kw_only=True):
    """The frontend that the packet hits.

    Attributes:
        service_port: the Service port, as ``namespace/name:port``.
        type: ``cluster IP``, ``external IP``, ``loadbalancer IP`` or ``node port``.
        policy: ``Cluster`` or ``Local``.
        meaning: what the policy means for this client, in words.
        source_ranges: what the source ranges say, in words; absent if there are none.
        affinity_seconds: the timeout of session affinity; absent without it.
        scheduler: the IPVS scheduler; absent in other modes.
        held: why the daemon holds the Service port back; absent if it does not.
    """

    service_port: str
    type: str
    policy: str
    meaning: str
    source_ranges: str = ""
    affinity_seconds: int = 0
    scheduler: str = ""
    held: str = ""


class TracedEndpoint(Part, frozen=True, kw_only=True):
    """An endpoint that a new connection may get.

    Attributes:
        endpoint: ``address:port``.
        probability: how likely it is.
        masqueraded: whether the endpoint sees an address of the node as the source.
        because: why the source is masqueraded or kept.
        on_this_node: whether the endpoint is on this node.
        route: how packets get there; absent if routes were not read.
    """

    endpoint: str
    probability: float
    masqueraded: bool
    because: str
    on_this_node: bool
    route: str = ""


class SkippedEndpoint(Part, frozen=True, kw_only=True):
    """An endpoint of the Service that the packet cannot get.

    Attributes:
        endpoint: ``address:port``; the address alone if its slice lacks the port.
        because: why, in words.
    """

    endpoint: str
    because: str


class TracedRules(Part, frozen=True, kw_only=True):
    """What rules do with the packet.

    Attributes:
        agrees: whether they do what should happen; absent if they could not be traced.
        disagreements: how they differ from it, a sentence each.
        affinity: the endpoint to which session affinity sends the client; absent if to none.
        error: why they could not be read or traced.
        rules: the rules that match, in the syntax of the kernel's tools, and the verdicts.
    """

    agrees: bool | None = None
    disagreements: tuple[str, ...] = ()
    affinity: str = ""
    error: str = ""
    rules: tuple[str, ...] = ()


class KnownConnection(Part, frozen=True, kw_only=True):
    """A connection of the client that connection tracking knows.

    Attributes:
        source_port: the client's port.
        endpoint: where it leads, as ``address:port``; absent if it is not translated.
    """

    source_port: int
    endpoint: str = ""


class ProbeReport(Part, frozen=True, kw_only=True):
    """What a real probe met.

    Attributes:
        outcome: ``answered``, ``refused``, ``no answer`` or ``not sent``.
        detail: the same in detail; for ``not sent`` the reason and the remedy.
        milliseconds: from sending to the answer; absent without one.
        source: the source of the probe as it was sent, ``address:port``.
        endpoint: where the node forwarded it, by connection tracking; absent if it did not.
        seen_source: the source that the endpoint sees.
        trace: the kernel's own trace of the first packet, a text for each event.
        no_trace: why there is none.
        agrees: whether the outcome is as predicted; absent if nothing was predicted or sent.
        disagreement: what differs from the prediction, in words.
        notes: what the reader should know, a sentence each.
        left: what could not be removed afterwards, with the reason.
    """

    outcome: str
    detail: str
    milliseconds: float = 0.0
    source: str = ""
    endpoint: str = ""
    seen_source: str = ""
    trace: tuple[str, ...] = ()
    no_trace: str = ""
    agrees: bool | None = None
    disagreement: str = ""
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


class Trace(Document, frozen=True, kw_only=True):
    """What this node does with a packet.

    Attributes:
        node: the node.
        packet: the packet.
        verdict: ``delivered``, ``refused``, ``dropped`` or ``not a service``.
        reason: why it is not delivered, in words; empty if it is.
        frontend: the frontend that it hits; absent if none.
        endpoints: the endpoints that a new connection may get.
        not_used: the other endpoints of the Service.
        connections: the client's connections to this destination.
        existing: whether the packet belongs to one of them, so that no rule decides.
        desired: what the rules do that the node is meant to have.
        kernel: what the kernel's rules do; absent if they were not read.
        live: what a real probe met; absent without ``--live``.
    """

    node: NodeSummary
    packet: TracedPacket
    verdict: Ending
    reason: str = ""
    frontend: TracedFrontend | None = None
    endpoints: tuple[TracedEndpoint, ...] = ()
    not_used: tuple[SkippedEndpoint, ...] = ()
    connections: tuple[KnownConnection, ...] = ()
    existing: bool = False
    desired: TracedRules
    kernel: TracedRules | None = None
    live: ProbeReport | None = None

    @property
    def probe_differs(self) -> bool:
        """Whether the probe met something else than predicted."""
        return self.live is not None and self.live.agrees is False

    @property
    def kernel_differs(self) -> bool:
        """Whether the kernel's rules do something else than they should."""
        return self.kernel is not None and bool(self.kernel.disagreements)


def trace_document(
    view: NodeView,
    about: FamilyView,
    answer: Answer,
    *,
    routes: Mapping[str, str],
    comparison: KernelComparison | None,
) -> Trace:
    """Describe an answer.

    Args:
        view: the node.
        about: the family of the packet.
        answer: the answer.
        routes: how packets get to each address.
        comparison: the kernel state of the family; ``None`` if it was not read.
    """
    kernel = {about.family: comparison} if comparison else None
    story = answer.story
    return Trace(
        node=_summary(view, about.family, kernel),
        packet=_packet(answer),
        verdict=answer.ending,
        reason="" if answer.ending is Ending.DELIVERED else story.reason,
        frontend=_frontend(view, about, answer),
        endpoints=tuple(
            TracedEndpoint(
                endpoint=each.target,
                probability=each.probability,
                masqueraded=each.masqueraded,
                because=each.why,
                on_this_node=each.endpoint.is_local,
                route=routes.get(each.endpoint.address, ""),
            )
            for each in story.candidates
        ),
        not_used=tuple(_not_used(view, about, answer)),
        connections=tuple(
            KnownConnection(source_port=f.source_port, endpoint=f.endpoint) for f in answer.flows
        ),
        existing=answer.existing is not None,
        desired=_rules(answer.desired),
        kernel=None if answer.kernel is None else _rules(answer.kernel),
    )


def _summary(
    view: NodeView, family: IPFamily, kernel: Mapping[IPFamily, KernelComparison] | None
) -> NodeSummary:
    families = {family: view.families[family]}
    return node_summary(NodeView(view.node, view.mode, view.config, families, view.status), kernel)


def _packet(answer: Answer) -> TracedPacket:
    story, question = answer.story, answer.story.question
    return TracedPacket(
        source=question.source,
        source_port=answer.source_port,
        destination=question.destination,
        port=question.port,
        protocol=question.protocol,
        interface=question.interface,
        client=story.client,
        classified=story.classified,
    )


def _frontend(view: NodeView, about: FamilyView, answer: Answer) -> TracedFrontend | None:
    story = answer.story
    if story.port is None or story.frontend is None:
        return None
    held: Mapping[str, str] = {}
    if view.status is not None and about.family in view.status.families:
        held = view.status.families[about.family].held
    return TracedFrontend(
        service_port=str(story.port.name),
        type=story.frontend.kind.value,
        policy="Local" if story.frontend.local else "Cluster",
        meaning=story.policy,
        source_ranges=story.admitted,
        affinity_seconds=story.port.affinity_seconds,
        scheduler=answer.scheduler,
        held=held.get(str(story.port.name), ""),
    )


def _not_used(view: NodeView, about: FamilyView, answer: Answer) -> Iterator[SkippedEndpoint]:
    """Yield the endpoints of the Service port that this packet cannot get, with the reason."""
    story = answer.story
    if story.port is None or story.frontend is None:
        return
    if story.ending is Ending.DROPPED and story.frontend.verdict is Verdict.FORWARD:
        return  # not for want of endpoints
    external = is_external(story.frontend)
    exempt = external and story.client is not Client.OUTSIDE
    local = story.frontend.local and not exempt
    since = view.status.not_ready_since if view.status else {}
    times = since.get(str(story.port.name.service), {})
    for use in endpoint_uses(about.state, story.port.name):
        excluded = use.not_local if local else use.not_cluster
        if excluded is None:
            continue
        text = str(excluded)
        if not use.entry.ready and use.address in times and view.status:
            text += f" for {_duration(view.status.now - times[use.address])}"
        yield SkippedEndpoint(endpoint=_target(use), because=text)


def _target(use: EndpointUse) -> str:
    return place(use.address, use.port) if use.port else use.address


def _duration(seconds: float) -> str:
    for size, unit in _SECONDS_PER:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _rules(traced: Traced) -> TracedRules:
    return TracedRules(
        agrees=None if traced.error else not traced.disagreements,
        disagreements=traced.disagreements,
        affinity=traced.pinned.endpoint if traced.pinned else "",
        error=traced.error,
        rules=traced.lines,
    )
