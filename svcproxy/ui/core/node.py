"""What pages know about a node at one moment. Pure."""

import json
from collections.abc import Mapping, Sequence

import msgspec

from svcproxy.admin.core.protocol import Repair, Status
from svcproxy.ui.core.latency import StageLatency
from svcproxy.ui.core.rows import ServiceRow


class Comparison(msgspec.Struct, frozen=True):
    """The result of comparing the kernel with the desired state.

    Attributes:
        at: when the kernel was read, in seconds since 1970.
        differences: the number of differences.
        problem: why the kernel could not be compared; empty if it was.
    """

    at: float = 0.0
    differences: int = 0
    problem: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """What pages show.

    Attributes:
        status: what the daemon says about itself.
        rows: the Services.
        latencies: how long changes take.
        repairs: the last repairs, oldest first.
        repaired: the number of repairs since the daemon started.
        comparison: whether the kernel agrees.
    """

    status: Status
    rows: Sequence[ServiceRow]
    latencies: Sequence[StageLatency] = ()
    repairs: Sequence[Repair] = ()
    repaired: int = 0
    comparison: Comparison = Comparison()


class Health(msgspec.Struct, frozen=True):
    """What ``/healthz`` answers.

    Attributes:
        fit: whether load balancers should send traffic to this node.
        working: whether no change has waited for the kernel too long.
        eligible: whether the Node object allows traffic.
        stalled: the names of threads that hang.
    """

    fit: bool
    working: bool = True
    eligible: bool = True
    stalled: tuple[str, ...] = ()


def health_of(status: int, body: bytes) -> Health:
    """Return the health from an answer of ``/healthz``."""
    try:
        answer: Mapping[str, object] = json.loads(body)
    except ValueError:
        answer = {}
    stalled = answer.get("stalledThreads")
    return Health(
        fit=status == 200,
        working=answer.get("healthy") is not False,
        eligible=answer.get("nodeEligible") is not False,
        stalled=tuple(map(str, stalled)) if isinstance(stalled, list) else (),
    )
