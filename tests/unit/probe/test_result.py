"""Comparing what came back with the prediction."""

import pytest

from svcproxy.probe.core.result import Expected, LiveResult, Outcome, Verdict, compared

A, B = "10.244.1.2:8080", "10.244.1.3:8080"
SOURCE, NODE = "10.244.1.9:40000", "10.244.1.1:40000"
VIP = "10.96.0.1:80"


def delivered(outcome: Outcome, endpoint: str = A, seen: str = SOURCE) -> LiveResult:
    return LiveResult(
        outcome,
        "",
        source=SOURCE,
        endpoint=endpoint,
        translated=True,
        seen_source=seen,
        masqueraded=seen != SOURCE,
    )


def untranslated(outcome: Outcome) -> LiveResult:
    return LiveResult(outcome, "", source=SOURCE, endpoint=VIP, seen_source=SOURCE)


TO_BOTH = Expected(Verdict.DELIVERED, frozenset({A, B}), masqueraded=False)
REFUSED, DROPPED = Expected(Verdict.REFUSED), Expected(Verdict.DROPPED)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (delivered(Outcome.ANSWERED), TO_BOTH),
        (delivered(Outcome.ANSWERED, B), TO_BOTH),
        # The node did its part, what the endpoint answers is another matter.
        (delivered(Outcome.REFUSED), TO_BOTH),
        (delivered(Outcome.NO_ANSWER), TO_BOTH),
        (delivered(Outcome.ANSWERED, seen=NODE), Expected(Verdict.DELIVERED, masqueraded=True)),
        (delivered(Outcome.ANSWERED, seen=NODE), Expected(Verdict.DELIVERED)),
        # The entry may be gone before it can be read.
        (LiveResult(Outcome.ANSWERED, ""), TO_BOTH),
        (LiveResult(Outcome.REFUSED, ""), REFUSED),
        (LiveResult(Outcome.NO_ANSWER, ""), DROPPED),
        # In IPVS mode the node refuses its own packets after they have left it over lo.
        (untranslated(Outcome.REFUSED), REFUSED),
        (untranslated(Outcome.NO_ANSWER), DROPPED),
    ],
)
def test_as_predicted(result: LiveResult, expected: Expected) -> None:
    found = compared(result, expected)
    assert found.agrees is True
    assert not found.disagreement


@pytest.mark.parametrize(
    ("result", "expected", "says"),
    [
        (delivered(Outcome.ANSWERED, "10.244.1.4:80"), TO_BOTH, "not among"),
        (untranslated(Outcome.NO_ANSWER), TO_BOTH, "not among"),
        (delivered(Outcome.ANSWERED, seen=NODE), TO_BOTH, "masqueraded"),
        (delivered(Outcome.ANSWERED), Expected(Verdict.DELIVERED, masqueraded=True), "kept"),
        (LiveResult(Outcome.REFUSED, ""), TO_BOTH, "refused by this node"),
        (LiveResult(Outcome.NO_ANSWER, ""), TO_BOTH, "no answer"),
        (LiveResult(Outcome.NO_ANSWER, ""), REFUSED, "no answer"),
        (LiveResult(Outcome.REFUSED, ""), DROPPED, "refused"),
        (delivered(Outcome.REFUSED), REFUSED, A),
        (delivered(Outcome.NO_ANSWER), DROPPED, A),
        (untranslated(Outcome.ANSWERED), REFUSED, "answered"),
    ],
)
def test_against_the_prediction(result: LiveResult, expected: Expected, says: str) -> None:
    found = compared(result, expected)
    assert found.agrees is False
    assert says in found.disagreement


@pytest.mark.parametrize(
    ("result", "expected"),
    [(LiveResult(Outcome.NOT_SENT, "no rights"), TO_BOTH), (delivered(Outcome.ANSWERED), None)],
)
def test_nothing_to_compare(result: LiveResult, expected: Expected | None) -> None:
    assert compared(result, expected).agrees is None


def test_the_node_is_masqueraded_as_itself() -> None:
    """Its own address stays, so translated or not, the endpoint sees an address of the node."""
    expected = Expected(Verdict.DELIVERED, masqueraded=True)
    assert compared(delivered(Outcome.ANSWERED), expected).agrees is False
    assert compared(delivered(Outcome.ANSWERED), expected, from_node=True).agrees is True
