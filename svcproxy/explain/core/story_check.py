"""Compares what should happen to a packet with a trace through rules."""

from collections.abc import Iterator

from svcproxy.explain.core.story_types import Ending, Story
from svcproxy.explain.core.trace import Action, Trace, Verdict, fraction

_TOLERANCE = 1e-3
"""iptables' ``statistic`` match has 31 bits, so probabilities are rounded."""

_ACTIONS = {
    Ending.DELIVERED: Action.ACCEPT,
    Ending.NOT_A_SERVICE: Action.ACCEPT,
    Ending.REFUSED: Action.REJECT,
    Ending.DROPPED: Action.DROP,
}

Outcome = tuple[Action, str, bool]
"""The action, the endpoint or an empty text, and whether the source is masqueraded."""


def disagreements(story: Story, traced: Trace) -> tuple[str, ...]:
    """Return how the verdicts of a trace differ from what should happen, a sentence each."""
    expected, found = _expected(story), _found(traced)
    return tuple(_compare(expected, found))


def pinned(story: Story, traced: Trace) -> Verdict | None:
    """Return the verdict of a trace that sends the client to the endpoint that affinity has.

    ``None`` if the Service port has no affinity, or the rules remember nothing of the client.
    """
    if story.port is None or not story.port.affinity_seconds or len(story.candidates) < 2:
        return None
    expected = _expected(story)
    if len(traced.verdicts) != 1 or _outcome(traced.verdicts[0]) not in expected:
        return None
    return traced.verdicts[0]


def _expected(story: Story) -> dict[Outcome, float]:
    if not story.candidates:
        return {(_ACTIONS[story.ending], "", False): 1.0}
    found: dict[Outcome, float] = {}
    for each in story.candidates:
        key = (Action.ACCEPT, each.target, each.masqueraded)
        found[key] = found.get(key, 0.0) + each.probability
    return found


def _outcome(verdict: Verdict) -> Outcome:
    return verdict.action, verdict.endpoint, verdict.masqueraded


def _found(traced: Trace) -> dict[Outcome, float]:
    found: dict[Outcome, float] = {}
    for verdict in traced.verdicts:
        key = _outcome(verdict)
        found[key] = found.get(key, 0.0) + verdict.probability
    return found


def _compare(expected: dict[Outcome, float], found: dict[Outcome, float]) -> Iterator[str]:
    for outcome in sorted(expected.keys() | found.keys()):
        wanted, share = expected.get(outcome, 0.0), found.get(outcome, 0.0)
        if not wanted:
            yield f"unexpected: {fraction(share)}{_text(outcome)}"
        elif not share:
            yield f"missing: {fraction(wanted)}{_text(outcome)}"
        elif abs(wanted - share) > _TOLERANCE:
            yield f"{_text(outcome)} has {fraction(share) or '1 '}instead of {fraction(wanted) or '1'}"


def _text(outcome: Outcome) -> str:
    action, endpoint, masqueraded = outcome
    verdict = Verdict(1.0, action, endpoint, masqueraded)
    return verdict.outcome
