"""Answers ``svcproxy trace``: what a node does with a packet, by objects, rules and kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
from msgspec import structs

from svcproxy.backends.ipvs.core.port_state import port_state
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.backends.settings import LocalTraffic
from svcproxy.explain.core.node_summary import KernelComparison
from svcproxy.explain.core.packet import Host
from svcproxy.explain.core.story import tell
from svcproxy.explain.core.story_addresses import Addresses
from svcproxy.explain.core.story_types import Question, Situation, Story
from svcproxy.explain.core.trace_answer import Answer, Traced, traced
from svcproxy.explain.core.trace_arguments import (
    NODE,
    OUTSIDE,
    Origin,
    QuestionError,
    Target,
    UnknownNameError,
)
from svcproxy.explain.core.trace_destination import Destination, choose_family, find_destination
from svcproxy.explain.core.trace_document import Trace, trace_document
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.explain.kernel_state import FamilyKernel, comparisons, desired_of, read_kernel
from svcproxy.explain.mode_explainer import ModeExplainer
from svcproxy.explain.pods import read_pod
from svcproxy.explain.surroundings import KernelSurroundings, Surroundings, UnknownSurroundings
from svcproxy.explain.views import explainer_of
from svcproxy.model.names import IPFamily
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.routes import RouteReader

_DOCUMENTATION = {
    IPFamily.IPV4: ("198.51.100.7", "192.0.2.7", "203.0.113.7"),
    IPFamily.IPV6: ("2001:db8::7",),
}
"""Addresses for ``outside``, reserved for documentation (RFC 5737, RFC 3849)."""
_ASSUMED_INTERFACE = "eth0"


class Asked(msgspec.Struct, frozen=True):
    """What to trace.

    Attributes:
        origin: where the packet comes from.
        target: where it goes.
        family: the family that they name; ``None`` if they leave it open.
        interface: the interface on which it arrives; empty to derive it from routes.
        kernel: whether to read the kernel: addresses, routes, rules and connections.
    """

    origin: Origin
    target: Target
    family: IPFamily | None = None
    interface: str = ""
    kernel: bool = True


class Found(msgspec.Struct, frozen=True):
    """The answer, as values and as a document."""

    about: FamilyView
    answer: Answer
    document: Trace


def trace_packet(view: NodeView, asked: Asked) -> Found:
    """Answer what a node does with a packet. Nothing in it changes the kernel.

    Args:
        view: the node; of a daemon on this node if the kernel is to be read.
        asked: the packet.

    Raises:
        QuestionError: the packet cannot be traced: see its subclasses.
    """
    about = choose_family(view, asked.target, asked.family)
    with _surroundings(about, kernel=asked.kernel) as around:
        try:
            return _Asking(view, about, asked, around).answer()
        except NetlinkError as error:
            raise QuestionError(f"cannot read the node's routes: {error}") from error


@contextmanager
def _surroundings(about: FamilyView, *, kernel: bool) -> Iterator[Surroundings]:
    if not kernel:
        six = about.family is IPFamily.IPV6
        node = about.state.node
        own = tuple(a for a in (node.addresses if node else ()) if (":" in a) is six)
        source = about.settings.node_address or (own[0] if own else "")
        yield UnknownSurroundings(own, source)
        return
    try:
        reader = RouteReader(about.family)
    except NetlinkError as error:
        raise QuestionError(f"cannot read the node's routes: {error}") from error
    with reader:
        yield KernelSurroundings(about.family, reader)


class _Asking:
    """Answers one question."""

    def __init__(
        self, view: NodeView, about: FamilyView, asked: Asked, around: Surroundings
    ) -> None:
        self.view = view
        self.about = about
        self.asked = asked
        self.around = around
        self.host = around.host()
        detection = view.config.detect_local_mode
        self.situation = Situation(
            view.mode, about.state.ports, about.settings, self.host, detection
        )

    def answer(self) -> Found:
        destination = find_destination(self.view, self.about, self.asked.target, self.situation)
        question = self._question(destination)
        story = tell(question, self.situation)
        explainer = explainer_of(self.view.mode)
        rules = explainer.desired(desired_of(self.about))
        kernel = self._read_kernel()
        answer = Answer(
            story,
            traced(question, story, rules, self.host),
            _trace_kernel(explainer, kernel, question, story, self.host),
            self.asked.origin.port,
            self.around.flows(question),
            self._scheduler(story),
        )
        document = trace_document(
            self.view,
            self.about,
            answer,
            routes=self.around.routes(c.endpoint.address for c in story.candidates),
            comparison=_comparison(self.about.family, kernel),
        )
        return Found(self.about, answer, document)

    def _read_kernel(self) -> FamilyKernel | None:
        if not self.asked.kernel:
            return None
        family = self.about.family
        return read_kernel(structs.replace(self.view, families={family: self.about}))[family]

    def _scheduler(self, story: Story) -> str:
        settings = self.about.settings
        if story.port is None or not isinstance(settings, IpvsSettings):
            return ""
        servers = port_state(story.port, settings).servers.values()
        return next((server.scheduler for server, _ in servers), "")

    def _question(self, to: Destination) -> Question:
        source = self._source(to.address)
        sent_here = self._is_own(source) and not self.asked.interface
        interface = "" if sent_here else self._interface(source)
        return Question(source, to.address, to.port, to.protocol, interface)

    def _is_own(self, source: str) -> bool:
        return Addresses(self.situation).is_local(source)

    def _source(self, to: str) -> str:
        origin = self.asked.origin
        if origin.address:
            return origin.address
        if origin.word == OUTSIDE:
            return self._outside()
        if origin.word == NODE:
            return self._node_source(to)
        assert origin.pod is not None, "the parser sets one"
        return self._pod_source()

    def _outside(self) -> str:
        """Return an address that the detection of pods does not take for a pod, if there is one."""
        addresses = _DOCUMENTATION[self.about.family]
        pods = self.about.settings.local_traffic.source
        if not pods:
            return addresses[0]
        network = ip_network(pods)
        return next((a for a in addresses if ip_address(a) not in network), addresses[0])

    def _node_source(self, to: str) -> str:
        if Addresses(self.situation).is_assigned(to):
            return to  # IPVS mode makes it an address of the node
        if source := self.around.source_to(to):
            return source
        raise QuestionError(
            f"the node has no route to {to}, or its address is unknown: give an address as FROM"
        )

    def _pod_source(self) -> str:
        name = self.asked.origin.pod
        assert name is not None, "the caller checks it"
        if self.view.status is None:
            raise QuestionError(
                f"manifests do not say which address pod {name} has: give its address as FROM"
            )
        pod = read_pod(name, self.view.config)
        six = self.about.family is IPFamily.IPV6
        for address in pod.addresses:
            if (":" in address) is six:
                return address
        raise UnknownNameError(f"pod {name} has no {self.about.family} address")

    def _interface(self, source: str) -> str:
        """Return the interface on which packets of an address arrive, as far as it can be known."""
        if self.asked.interface:
            return self.asked.interface
        if found := self.around.interface_to(source):
            return found
        return self._assumed_interface(source, self.about.settings.local_traffic)

    def _assumed_interface(self, source: str, local: LocalTraffic) -> str:
        """Return the interface of pods for the pod CIDRs of the node."""
        node = self.about.state.node
        six = self.about.family is IPFamily.IPV6
        cidrs = [c for c in (node.pod_cidrs if node else ()) if (":" in c) is six]
        if local.interface and any(ip_address(source) in ip_network(c) for c in cidrs):
            return local.interface.replace("+", "0")
        return _ASSUMED_INTERFACE


def _trace_kernel(
    explainer: ModeExplainer[Any],
    kernel: FamilyKernel | None,
    question: Question,
    story: Story,
    host: Host,
) -> Traced | None:
    if kernel is None:
        return None
    if kernel.error:
        return Traced(error=kernel.error)
    return traced(question, story, explainer.ruleset(kernel.kernel), host)


def _comparison(family: IPFamily, kernel: FamilyKernel | None) -> KernelComparison | None:
    return None if kernel is None else comparisons({family: kernel})[family]
