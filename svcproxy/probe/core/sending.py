"""What a socket says about the answer to a probe, in words."""

from struct import Struct

from svcproxy.netlink.core import addresses

_EXTENDED_ERROR = Struct("=IBBBBII")
"""``struct sock_extended_err`` of ``linux/errqueue.h``; the address of the sender follows."""
_ICMP, _ICMPV6 = 2, 3
_UNREACHABLE = 3
_TEXTS_V4 = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "fragmentation needed",
    9: "network prohibited",
    10: "host prohibited",
    13: "administratively prohibited",
}
_TEXTS_V6 = {
    0: "no route",
    1: "administratively prohibited",
    3: "address unreachable",
    4: "port unreachable",
    5: "policy fail",
    6: "reject route",
}


def icmp_text(error: bytes) -> str:
    """Return an ICMP error in words, from the control message of a socket's error queue.

    Returns:
        Such as ``ICMP port unreachable from 10.0.0.1``; empty if the error is not from ICMP.
    """
    if len(error) < _EXTENDED_ERROR.size:
        return ""
    _, origin, kind, code, _, _, _ = _EXTENDED_ERROR.unpack_from(error)
    sender = error[_EXTENDED_ERROR.size :]
    if origin == _ICMP:
        text = _TEXTS_V4.get(code, f"code {code}") if kind == _UNREACHABLE else f"type {kind}"
        packed = sender[4:8]
    elif origin == _ICMPV6:
        text = _TEXTS_V6.get(code, f"code {code}") if kind == 1 else f"type {kind}"
        packed = sender[8:24]
    else:
        return ""
    whole = len(packed) in {4, 16}
    name = "ICMPv6" if origin == _ICMPV6 else "ICMP"
    return f"{name} {text} from {addresses.text(packed)}" if whole else f"{name} {text}"
