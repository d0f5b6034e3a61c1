"""What should happen to a packet, and what the rules do with it: desired ones and the kernel's."""

from collections.abc import Iterator

import msgspec
from msgspec import structs

from svcproxy.explain.core.packet import Host, Packet, UnknownRuleError
from svcproxy.explain.core.story_check import disagreements, pinned
from svcproxy.explain.core.story_types import Ending, Question, Story
from svcproxy.explain.core.trace import Ruleset, Step, Trace, Verdict, explain, trace


class Traced(msgspec.Struct, frozen=True):
    """A trace through rules, compared with what should happen.

    Attributes:
        disagreements: how its verdicts differ from what should happen, a sentence each.
        pinned: the endpoint to which session affinity sends the client; ``None`` if to none.
        lines: each rule that matched, in the syntax of the kernel's tools, and the verdicts.
        error: why the rules could not be traced; empty if they were.
    """

    disagreements: tuple[str, ...] = ()
    pinned: Verdict | None = None
    lines: tuple[str, ...] = ()
    error: str = ""


class OpenFlow(msgspec.Struct, frozen=True):
    """A connection of the client to the same destination that connection tracking knows.

    Attributes:
        source_port: the client's port.
        endpoint: where it leads, as ``address:port``; empty if it is not translated.
    """

    source_port: int
    endpoint: str


class Answer(msgspec.Struct, frozen=True):
    """The answer of ``svcproxy trace``.

    Attributes:
        story: what should happen to the first packet of a new connection.
        desired: the trace through the rules that the node is meant to have.
        kernel: the trace through those that it has; ``None`` if they were not read.
        source_port: the client's port; 0 if none is given.
        flows: the client's connections to the same destination.
        scheduler: the IPVS scheduler of the Service port; empty in other modes.
    """

    story: Story
    desired: Traced
    kernel: Traced | None = None
    source_port: int = 0
    flows: tuple[OpenFlow, ...] = ()
    scheduler: str = ""

    @property
    def existing(self) -> OpenFlow | None:
        """The connection that the packet belongs to: it has the client's port already."""
        return next((f for f in self.flows if f.source_port == self.source_port), None)

    @property
    def ending(self) -> Ending:
        """What becomes of the packet; an existing connection continues."""
        if self.existing is not None and self.existing.endpoint:
            return Ending.DELIVERED
        return self.story.ending

    @property
    def kernel_differs(self) -> bool:
        """Whether the kernel's rules do something else than they should."""
        return self.kernel is not None and bool(self.kernel.disagreements)


def traced(question: Question, story: Story, rules: Ruleset, host: Host) -> Traced:
    """Trace a packet through rules, and compare the verdicts with what should happen."""
    packet = Packet(
        question.source,
        question.destination,
        question.port,
        question.protocol.keyword,
        question.interface,
    )
    try:
        found = trace(packet, rules, host)
    except UnknownRuleError as error:
        return Traced(error=f"the rules contain one that svcproxy does not know: {error}")
    kept = pinned(story, found)
    lines = tuple(_lines(found, rules))
    return Traced(() if kept else disagreements(story, found), kept, lines)


def _lines(found: Trace, rules: Ruleset) -> Iterator[str]:
    """Yield each rule that matched once, with the share of all branches that reach it."""
    steps: dict[tuple[str, str, int], Step] = {}
    for step in found.steps:
        key = (step.table, step.chain, step.position)
        known = steps.get(key)
        steps[key] = step._replace(
            probability=step.probability + (known.probability if known else 0.0)
        )
    whole = structs.replace(found, steps=tuple(_at_most_certain(s) for s in steps.values()))
    return explain(whole, rules)


def _at_most_certain(step: Step) -> Step:
    # A chain that is tried twice, or a second packet through a hook, counts twice.
    return step._replace(probability=min(1.0, step.probability))
