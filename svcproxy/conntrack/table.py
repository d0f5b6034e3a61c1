"""The kernel's connection tracking table, over netlink sockets."""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence

from svcproxy.conntrack import netlink
from svcproxy.conntrack.core.stale import Flow, Key
from svcproxy.limits import NETLINK_PATIENCE_SECONDS
from svcproxy.model.names import IPFamily
from svcproxy.netlink.connection import only_from_kernel
from svcproxy.netlink.core.attributes import MalformedError
from svcproxy.netlink.core.messages import DONE, ERROR, FLAG_INTERRUPTED, Message, messages
from svcproxy.refusals import REFUSALS

_NETFILTER = 12  # NETLINK_NETFILTER
_READ_BYTES = 65536  # the kernel fills at most 32 KiB at a time
_ATTEMPTS = 5
_BATCH = 100  # so that the answers to one batch fit into the smallest usual receive buffer
_NO_FILTERS = {errno.EOPNOTSUPP, errno.EINVAL}
_HINTS = {
    errno.EPERM: "CAP_NET_ADMIN is needed",
    errno.EPROTONOSUPPORT: "the kernel has no netfilter netlink",
    errno.EINVAL: "is the kernel module nf_conntrack_netlink missing?",
}


class ConntrackError(Exception):
    """The kernel would not list or delete flows; the message says what and why."""


class Table:
    """The connection tracking entries of one family, in the calling thread's namespace.

    Each call opens a socket of its own: that takes some microseconds, and nothing that an
    error leaves in a socket can be taken for the answer to a later question.
    ``filtering`` becomes false when the kernel turns out to know no filters; every dump then
    returns the whole family.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self.filtering = True

    def find(self, query: Key, wanted: Callable[[Flow], bool]) -> list[Flow]:
        """List the ``wanted`` ones among the flows that match ``query``, and possibly others.

        Only what is wanted is kept: a table can hold a million entries.

        Raises:
            ConntrackError: the table could not be read.
        """
        what = "list connection tracking entries"
        for _ in range(_ATTEMPTS):
            filtering = self.filtering
            try:
                found, whole = self._dump(query, wanted)
            except OSError as error:
                if filtering and error.errno in _NO_FILTERS:
                    self.filtering = False
                elif error.errno != errno.ENOBUFS:
                    raise _explained(what, error) from error
                else:
                    REFUSALS.count("netlink", "enobufs")
            except MalformedError as error:
                raise _explained(what, error) from error
            else:
                if whole:
                    return found
        raise ConntrackError(f"cannot {what}: interrupted {_ATTEMPTS} times")

    def _dump(self, query: Key, wanted: Callable[[Flow], bool]) -> tuple[list[Flow], bool]:
        """One dump: what is wanted of it, and whether it was free of interruptions."""
        found: list[Flow] = []
        whole = True
        with _opened(_NETFILTER) as sock:
            sock.send(netlink.dump_request(self.family, query if self.filtering else None, 1))
            for message in _answers(sock):
                whole = whole and not message.flags & FLAG_INTERRUPTED
                if message.kind in (DONE, ERROR):
                    _check(message)
                    break
                flow = netlink.decode_flow(message.body)
                if flow is None or not _matches(query, flow):
                    # Nobody asked for it: this kernel does not know filters.
                    self.filtering = False
                if flow is not None and wanted(flow):
                    found.append(flow)
        return found, whole

    def delete(self, flows: Sequence[Flow]) -> int:
        """Delete entries; return how many of them were still there.

        Raises:
            ConntrackError: an entry could not be deleted; the others were.
        """
        deleted, failure = 0, 0
        try:
            with _opened(_NETFILTER) as sock:
                for start in range(0, len(flows), _BATCH):
                    for code in self._delete(sock, flows[start : start + _BATCH]):
                        deleted += code == 0
                        failure = code if code not in (0, errno.ENOENT) else failure
        except (OSError, MalformedError) as error:
            raise _explained("delete connection tracking entries", error) from error
        if failure:
            reason = OSError(failure, os.strerror(failure))
            raise _explained("delete connection tracking entries", reason)
        return deleted

    def _delete(self, sock: socket.socket, flows: Sequence[Flow]) -> Iterator[int]:
        requests = (netlink.delete_request(self.family, f, n) for n, f in enumerate(flows, 1))
        sock.send(b"".join(requests))
        missing = len(flows)
        for message in _answers(sock):
            if message.kind == ERROR:
                yield message.error
                missing -= 1
            if not missing:
                return

    def is_local(self, address: bytes) -> bool:
        """Whether an address is the machine's own, as ``addrtype --dst-type LOCAL`` means it.

        Raises:
            ConntrackError: the routes could not be asked.
        """
        try:
            with _opened(socket.NETLINK_ROUTE) as sock:
                sock.send(netlink.route_request(self.family, address, 1))
                # No route at all is an answer too: an error message.
                return netlink.is_local_route(next(_answers(sock)))
        except (OSError, MalformedError) as error:
            raise _explained("look up a route", error) from error


def _matches(query: Key, flow: Flow) -> bool:
    """Whether a kernel with filters may return the flow (SCTP ports it does not compare)."""
    return flow.protocol == query.protocol and (
        query.port in (0, flow.port) or flow.protocol == socket.IPPROTO_SCTP
    )


def _opened(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.bind((0, 0))
    only_from_kernel(sock)
    sock.settimeout(NETLINK_PATIENCE_SECONDS)
    return sock


def _answers(sock: socket.socket) -> Iterator[Message]:
    while True:
        # What does not fit is cut off, and so ends in a message that is malformed.
        yield from messages(sock.recv(_READ_BYTES))


def _check(message: Message) -> None:
    if message.error:
        raise OSError(message.error, os.strerror(message.error))


def _explained(what: str, error: OSError | MalformedError) -> ConntrackError:
    if isinstance(error, MalformedError):
        REFUSALS.count("netlink", "malformed")
        return ConntrackError(f"cannot {what}: the kernel's answer is malformed: {error}")
    if isinstance(error, TimeoutError):
        return ConntrackError(f"cannot {what}: no answer within {NETLINK_PATIENCE_SECONDS} s")
    hint = _HINTS.get(error.errno or 0)
    reason = f"{error.strerror} ({hint})" if hint else error.strerror
    return ConntrackError(f"cannot {what}: {reason}")
