"""The kernel's connection tracking table."""

import errno
import socket
from collections.abc import Callable, Sequence

from svcproxy.limits import NETLINK_TIMEOUT_SECONDS
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import DUMP_ATTEMPTS, NetlinkClient
from svcproxy.netlink.core.conntrack import (
    Destination,
    Flow,
    decode_flow,
    delete_request,
    dump_request,
)
from svcproxy.netlink.core.routes import is_local_route, route_request
from svcproxy.netlink.errors import (
    BufferOverrunError,
    InterruptedDumpError,
    MalformedError,
    NetlinkError,
    RequestRefusedError,
    TimedOutError,
)
from svcproxy.netlink.socket import NETFILTER, ROUTE

_DATAGRAM_BYTES = 64 << 10  # the kernel sends dumps in pieces of at most 32 KiB
_NO_FILTERS = {errno.EOPNOTSUPP, errno.EINVAL}
_HINTS = {
    errno.EPERM: "CAP_NET_ADMIN is needed",
    errno.EPROTONOSUPPORT: "the kernel has no netfilter netlink",
    errno.EINVAL: "is the kernel module nf_conntrack_netlink missing?",
}


class ConntrackError(Exception):
    """Listing or deleting flows failed; the message names the operation and the reason."""


class Table:
    """The connection tracking entries of one family, in the calling thread's network namespace.

    Each call opens its own socket: this takes some microseconds, and the callers need not share a
    thread or close anything.

    Attributes:
        family: the IP family.
        filtering: whether the kernel filters dumps. It becomes false if the kernel ignores or
            refuses filters; every dump then returns all entries of the family.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self.filtering = True

    def find(self, query: Destination, wanted: Callable[[Flow], bool]) -> list[Flow]:
        """Return the flows for which ``wanted`` is true.

        ``wanted`` is called for all flows that match ``query``, and possibly for others. The other
        flows are not kept in memory: a table can have a million entries.

        Raises:
            ConntrackError: the table could not be read.
        """
        what = "list connection tracking entries"
        for _ in range(DUMP_ATTEMPTS):
            filtering = self.filtering
            try:
                return self._dump(query, wanted)
            except (InterruptedDumpError, BufferOverrunError):
                continue
            except NetlinkError as error:
                if not filtering or error.errno not in _NO_FILTERS:
                    raise _explained(what, error) from error
                self.filtering = False
        raise ConntrackError(f"cannot {what}: interrupted {DUMP_ATTEMPTS} times")

    def _dump(self, query: Destination, wanted: Callable[[Flow], bool]) -> list[Flow]:
        found: list[Flow] = []

        def take(body: bytes) -> None:
            flow = decode_flow(body)
            if flow is None or not _matches(query, flow):
                # The flow does not match: this kernel ignores filters.
                self.filtering = False
            if flow is not None and wanted(flow):
                found.append(flow)

        with _client(NETFILTER) as client:
            request = dump_request(self.family, query if self.filtering else None)
            client.dump_each(request, take)
        return found

    def delete(self, flows: Sequence[Flow]) -> int:
        """Delete entries; return how many of them still existed.

        Raises:
            ConntrackError: an entry could not be deleted; the others were.
        """
        what = "delete connection tracking entries"
        try:
            with _client(NETFILTER) as client:
                refusals = client.execute(delete_request(self.family, f) for f in flows)
        except NetlinkError as error:
            raise _explained(what, error) from error
        failures = [r.number for r in refusals if r.number != errno.ENOENT]
        if failures:
            raise _explained(what, RequestRefusedError(failures[-1]))
        return len(flows) - len(refusals)

    def is_local(self, address: bytes) -> bool:
        """Return whether the node has an address, in the sense of ``addrtype --dst-type LOCAL``.

        Raises:
            ConntrackError: the route could not be looked up.
        """
        try:
            with _client(ROUTE) as client:
                return is_local_route(client.get(route_request(self.family, address)))
        except RequestRefusedError:
            return False  # there is no route
        except NetlinkError as error:
            raise _explained("look up a route", error) from error


def _matches(query: Destination, flow: Flow) -> bool:
    """Return whether a kernel that filters may return the flow; kernels ignore SCTP ports."""
    return flow.protocol == query.protocol and (
        query.port in (0, flow.port) or flow.protocol == socket.IPPROTO_SCTP
    )


def _client(protocol: int) -> NetlinkClient:
    return NetlinkClient(protocol, datagram_bytes=_DATAGRAM_BYTES, receive_buffer_bytes=0)


def _explained(what: str, error: NetlinkError) -> ConntrackError:
    if isinstance(error, MalformedError):
        return ConntrackError(f"cannot {what}: the kernel's answer is malformed: {error}")
    if isinstance(error, TimedOutError):
        return ConntrackError(f"cannot {what}: no answer within {NETLINK_TIMEOUT_SECONDS} s")
    hint = _HINTS.get(error.errno or 0)
    return ConntrackError(f"cannot {what}: {error} ({hint})" if hint else f"cannot {what}: {error}")
