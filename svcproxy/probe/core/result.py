"""What a probe is asked for, and what it reports."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.model.serviceport import ServicePort


class SourceKind(StrEnum):
    """Where the probe is sent from.

    ``NODE``: the node itself. ``POD``: a pod on this node, by its address. ``OUTSIDE``: a temporary
    machine behind this node. ``ADDRESS``: whichever of node and pod has the address.
    """

    NODE = "node"
    POD = "pod"
    OUTSIDE = "outside"
    ADDRESS = "address"


class Outcome(StrEnum):
    """What came back.

    ``REFUSED`` is a TCP reset, an SCTP abort or an ICMP error, of the node or of the endpoint.
    """

    ANSWERED = "answered"
    REFUSED = "refused"
    NO_ANSWER = "no answer"
    NOT_SENT = "not sent"


class Verdict(StrEnum):
    """What is expected of this node."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    DROPPED = "dropped"


class Expected(msgspec.Struct, frozen=True):
    """A prediction to compare the outcome with.

    Attributes:
        verdict: what the node does with the packet.
        endpoints: for ``DELIVERED``, all endpoints that it may reach, as ``address:port`` or
            ``[address]:port``.
        masqueraded: whether the endpoint sees an address of the node as the source; ``None`` if
            unknown or if it differs between endpoints.
    """

    verdict: Verdict
    endpoints: frozenset[str] = frozenset()
    masqueraded: bool | None = None


class LiveRequest(msgspec.Struct, frozen=True):
    """What to send.

    Attributes:
        family: the IP family of all addresses.
        protocol: the protocol.
        destination: the destination address.
        port: the destination port.
        source_kind: where to send from.
        source: the source address. It is required for a pod and an address; empty to let the kernel
            choose for the node, and to take an address reserved for documentation for outside.
        mode: the proxy mode, for entries of session affinity and IPVS.
        iptables_variant: the variant of iptables that holds rules (``nft``, ``legacy``); empty if
            none does.
        service_port: the Service port that the destination belongs to; ``None`` if there is none.
        settings: the mode's settings; ``None`` if unknown.
        expected: the prediction; ``None`` for none.
        payload: what a UDP datagram contains.
        timeout: how long to wait for an answer, in seconds.
        allow_affinity: send even if an entry of session affinity remains (IPVS).
    """

    family: IPFamily
    protocol: Protocol
    destination: str
    port: int
    source_kind: SourceKind = SourceKind.NODE
    source: str = ""
    mode: str = ""
    iptables_variant: str = ""
    service_port: ServicePort | None = None
    settings: Settings | None = None
    expected: Expected | None = None
    payload: bytes = b""
    timeout: float = 2.0
    allow_affinity: bool = False


class TraceLine(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One event of the kernel's own trace of the packet.

    Attributes:
        table: family and name of the table: ``ip svcproxy``.
        chain: the chain.
        handle: the handle of the rule that matched; 0 for the end or the policy of a chain.
        rule: the rule in the syntax of its tool; empty if unknown.
        verdict: what followed: ``accept``, ``drop``, ``jump KUBE-…`` and so on.
    """

    table: str
    chain: str
    handle: int
    rule: str
    verdict: str

    def __str__(self) -> str:
        what = f" rule {self.handle}" if self.handle else ""
        text = f"  {self.rule}" if self.rule else ""
        return f"{self.table} {self.chain}{what}{text} -> {self.verdict}"


class LiveResult(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What came back, and what the kernel did.

    Attributes:
        outcome: what came back.
        detail: the same in detail: ``SYN-ACK``, ``RST``, ``ICMP port unreachable from 10.0.0.1``,
            ``reply of 12 bytes``; for ``NOT_SENT`` the reason and the remedy.
        milliseconds: from sending to the answer; 0 without one.
        source: the source of the probe as it was sent, ``address:port``.
        endpoint: where the node sent it, ``address:port``, by connection tracking: an endpoint, or
            the destination itself if nothing translated it; empty if the node refused or dropped it
            before connection tracking confirmed it.
        translated: whether the endpoint differs from the destination.
        seen_source: the source that the endpoint sees, ``address:port``; empty with ``endpoint``.
        masqueraded: whether the source was translated. For the node's own packets the address may
            stay the same.
        trace: the kernel's own trace of the first packet.
        no_trace: why there is none.
        agrees: whether the outcome is as predicted; ``None`` without a prediction, and if nothing
            was sent.
        disagreement: what differs from the prediction, in words.
        notes: what the reader should know, a sentence each.
        left: what could not be removed afterwards, with the reason.
    """

    outcome: Outcome
    detail: str
    milliseconds: float = 0.0
    source: str = ""
    endpoint: str = ""
    translated: bool = False
    seen_source: str = ""
    masqueraded: bool = False
    trace: Sequence[TraceLine] = ()
    no_trace: str = ""
    agrees: bool | None = None
    disagreement: str = ""
    notes: Sequence[str] = ()
    left: Sequence[str] = ()


def compared(
    result: LiveResult, expected: Expected | None, *, from_node: bool = False
) -> LiveResult:
    """Return the result with ``agrees`` and ``disagreement``.

    Args:
        result: the result.
        expected: the prediction.
        from_node: the source is an address of the node, so the endpoint sees one in any case.
    """
    if expected is None or result.outcome is Outcome.NOT_SENT:
        return result
    if from_node:
        expected = msgspec.structs.replace(expected, masqueraded=None)
    text = _disagreement(result, expected)
    return msgspec.structs.replace(result, agrees=not text, disagreement=text)


def _disagreement(result: LiveResult, expected: Expected) -> str:
    came = result.outcome.value
    match expected.verdict:
        case Verdict.DELIVERED:
            return _undelivered(result, expected)
        case Verdict.REFUSED:
            if result.translated:
                return f"expected a refusal by this node, but it forwarded to {result.endpoint}"
            return "" if result.outcome is Outcome.REFUSED else f"expected a refusal, but {came}"
        case Verdict.DROPPED:
            if result.translated:
                return f"expected a drop by this node, but it forwarded to {result.endpoint}"
            return "" if result.outcome is Outcome.NO_ANSWER else f"expected no answer, but {came}"


def _undelivered(result: LiveResult, expected: Expected) -> str:
    if not result.endpoint:
        # An endpoint can refuse without a connection tracking entry that could be read.
        delivered = result.outcome is Outcome.ANSWERED
        return "" if delivered else f"expected delivery, but {result.outcome.value} by this node"
    if expected.endpoints and result.endpoint not in expected.endpoints:
        among = ", ".join(sorted(expected.endpoints)[:8])
        return f"delivered to {result.endpoint}, which is not among {among}"
    if expected.masqueraded is not None and result.masqueraded is not expected.masqueraded:
        done = "masqueraded" if result.masqueraded else "kept"
        return f"the source was {done}, against the prediction"
    return ""
