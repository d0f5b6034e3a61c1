"""``svcproxy trace --live``: sends a real probe. ``trace`` calls this module when it needs it."""

import argparse

from svcproxy.priority import take_part
from svcproxy.probe.core.result import LiveRequest, LiveResult

_SECONDS = 2.0
_LONGEST_SECONDS = 60.0
_PAYLOAD_BYTES = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--live`` and the flags that go with it."""
    group = parser.add_argument_group("a real probe (as root, on the node)")
    group.add_argument(
        "--live",
        action="store_true",
        help="send a real TCP SYN, UDP datagram or SCTP INIT, and report what came back and what"
        " the kernel did with it",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=_SECONDS,
        metavar="SECONDS",
        help=f"how long --live waits for an answer ({_SECONDS:g})",
    )
    group.add_argument(
        "--payload",
        type=_payload,
        default=b"",
        metavar="TEXT",
        help="what --live sends in a UDP datagram (nothing: an empty datagram)",
    )
    group.add_argument(
        "--allow-affinity",
        action="store_true",
        help="let --live leave an entry of session affinity, which IPVS cannot delete",
    )


def probe(request: LiveRequest) -> LiveResult:
    """Send the probe and report; nothing of it remains in the kernel.

    The outcome is ``not sent``, with the reason and the remedy, if a right or a kernel feature is
    missing.
    """
    from svcproxy.probe.prober import probe as run  # noqa: PLC0415 - only when it is asked for

    take_part()  # the times of the probe must not depend on what else the node does
    return run(request)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"not between 0 and {_LONGEST_SECONDS:g} seconds")
    return value


def _payload(text: str) -> bytes:
    value = text.encode()
    if len(value) > _PAYLOAD_BYTES:
        raise argparse.ArgumentTypeError(f"longer than {_PAYLOAD_BYTES} bytes")
    return value
