"""Sends a probe and reports."""

from svcproxy.probe.core.result import LiveRequest, LiveResult, Outcome


def probe(request: LiveRequest) -> LiveResult:
    """Send a probe, see ``commands.live.probe``."""
    return LiveResult(Outcome.NOT_SENT, f"{request.protocol.value} probes cannot be sent yet")
