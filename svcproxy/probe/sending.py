"""Sends the probe and waits for what comes back."""

import contextlib
import errno
import select
import socket
import struct
import time
from typing import NamedTuple

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.probe.core.result import LiveRequest, Outcome
from svcproxy.probe.core.sending import icmp_text
from svcproxy.probe.errors import NotSentError

_FAMILIES = {IPFamily.IPV4: socket.AF_INET, IPFamily.IPV6: socket.AF_INET6}
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ANSWER_BYTES = 65536
_ERROR_BYTES = 512
_NO_ROUTE = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EHOSTUNREACH}
_GREETINGS = {Protocol.TCP: "SYN-ACK", Protocol.SCTP: "INIT-ACK"}
_REFUSALS = {Protocol.TCP: "RST", Protocol.SCTP: "ABORT"}


class Answer(NamedTuple):
    """What came back: in short, in detail, and after how many milliseconds (0 for nothing)."""

    outcome: Outcome
    detail: str
    milliseconds: float = 0.0


def open_socket(request: LiveRequest, source: str) -> socket.socket:
    """Return a socket in the thread's network namespace that is bound to the probe's source.

    Nothing is sent. Closing it resets a connection at once, also when the process is killed.

    Args:
        request: what will be sent.
        source: the source address; empty to let the kernel choose.

    Raises:
        NotSentError: the kernel refused.
    """
    kind = socket.SOCK_DGRAM if request.protocol is Protocol.UDP else socket.SOCK_STREAM
    number = socket.IPPROTO_SCTP if request.protocol is Protocol.SCTP else 0
    family = _FAMILIES[request.family]
    try:
        source = source or _chosen_source(request)
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK, number)
    except OSError as error:
        raise NotSentError(_reason(request, error)) from error
    try:
        if request.protocol is not Protocol.UDP:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        made.bind((source, 0))
    except OSError as error:
        made.close()
        raise NotSentError(f"cannot send from {source}: {error.strerror}") from error
    return made


def _chosen_source(request: LiveRequest) -> str:
    """Return the source address that the kernel chooses; connecting a UDP socket sends nothing."""
    with socket.socket(_FAMILIES[request.family], socket.SOCK_DGRAM) as asking:
        asking.connect((request.destination, request.port))
        return str(asking.getsockname()[0])


def _reason(request: LiveRequest, error: OSError) -> str:
    if error.errno in _NO_ROUTE:
        return f"the node has no route to {request.destination} ({error.strerror})"
    if request.protocol is Protocol.SCTP:
        return f"the kernel has no SCTP ({error.strerror}): load the kernel module sctp"
    return f"cannot open a socket: {error.strerror}"


def send(made: socket.socket, request: LiveRequest) -> Answer:
    """Send the probe and wait for an answer.

    Raises:
        NotSentError: the kernel did not send it.
    """
    began = time.monotonic()
    try:
        made.connect((request.destination, request.port))
        if request.protocol is Protocol.UDP:
            made.send(request.payload)
    except BlockingIOError:
        pass  # the connection is being opened
    except OSError as error:
        return _failed(made, request, error, began)
    return _wait(made, request, began)


def _wait(made: socket.socket, request: LiveRequest, began: float) -> Answer:
    udp = request.protocol is Protocol.UDP
    waiting = select.poll()
    waiting.register(made, select.POLLIN if udp else select.POLLOUT)
    left = began + request.timeout - time.monotonic()
    if not waiting.poll(max(0.0, left) * 1000):
        return Answer(Outcome.NO_ANSWER, f"nothing within {request.timeout:g} s")
    if udp:
        try:
            size = len(made.recv(_ANSWER_BYTES))
        except OSError as error:
            return _failed(made, request, error, began)
        return Answer(Outcome.ANSWERED, f"reply of {size} bytes", _since(began))
    number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        return _failed(made, request, OSError(number, ""), began)
    return Answer(Outcome.ANSWERED, _GREETINGS[request.protocol], _since(began))


def _failed(made: socket.socket, request: LiveRequest, error: OSError, began: float) -> Answer:
    """Return what an error of the socket means."""
    took = _since(began)
    number = error.errno
    if number == errno.EPERM:
        # The node's own rules dropped or rejected the packet. A rejection also sends an ICMP error.
        number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or number
    icmp = _icmp_error(made)
    if icmp:
        return Answer(Outcome.REFUSED, icmp, took)
    if number == errno.ECONNREFUSED:
        return Answer(Outcome.REFUSED, _REFUSALS.get(request.protocol, "ICMP error"), took)
    if number == errno.EPERM:
        return Answer(Outcome.NO_ANSWER, "the node's own rules dropped it (EPERM)")
    if number == errno.ETIMEDOUT:
        return Answer(Outcome.NO_ANSWER, "nothing until the kernel gave up")
    if number == errno.EHOSTUNREACH:
        return Answer(Outcome.NO_ANSWER, "no neighbour answers for the next hop (EHOSTUNREACH)")
    if number == errno.ECONNRESET:
        return Answer(Outcome.REFUSED, "RST", took)
    raise NotSentError(_reason(request, OSError(number, errno.errorcode.get(number or 0, "error"))))


def _icmp_error(made: socket.socket) -> str:
    with contextlib.suppress(OSError):
        _, controls, _, _ = made.recvmsg(1, _ERROR_BYTES, socket.MSG_ERRQUEUE)
        for _, _, data in controls:
            text = icmp_text(data)
            if text:
                return text
    return ""


def _since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)
