"""ipset over netlink, for one family."""

import errno
import os
from collections.abc import Iterable, Sequence
from itertools import groupby

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import ipset as messages
from svcproxy.netlink.core.ipset import ListedSet, PartialRequest
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.operations import (
    AddEntries,
    DestroySet,
    Failure,
    RemoveEntries,
    SetOperation,
)
from svcproxy.netlink.errors import NetlinkError, doing
from svcproxy.netlink.socket import NETFILTER


class IpsetSocket:
    """A socket to the ipsets in the network namespace of the calling thread.

    Only the thread that creates it may use it.

    Args:
        family: the family of the sets.

    Raises:
        NetlinkError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        with doing("open a netfilter netlink socket"):
            self._client = NetlinkClient(NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def execute(self, operations: Sequence[SetOperation]) -> list[Failure]:
        """Execute operations in order; a failed operation does not stop the others.

        Returns:
            The operations that the kernel refused; of an operation with several entries, one
            failure for each refused entry.

        Raises:
            NetlinkError: the kernel did not answer; the effect of the operations is unknown.
        """
        failures: list[Failure] = []
        for _, group in groupby(operations, _has_entries):
            parts = [p for op in group for p in messages.operation_requests(op, self.family)]
            skipped = self._execute(parts, failures)
            # The kernel stops processing a message at the first refused entry. Sending the
            # remaining entries one by one bounds the number of messages, however many of them
            # the kernel refuses.
            singles = [p for op in skipped for p in messages.single_entry_requests(op, self.family)]
            self._execute(singles, failures)
        return failures

    def _execute(
        self, parts: Sequence[PartialRequest], failures: list[Failure]
    ) -> list[AddEntries | RemoveEntries]:
        """Send requests; append refusals to ``failures``; return the entries that were skipped."""
        skipped: list[AddEntries | RemoveEntries] = []
        with doing(f"send {len(parts)} messages to ipset"):
            refusals = self._client.execute([part.request for part in parts])
        for refusal in refusals:
            operation = parts[refusal.position].operation
            if isinstance(operation, AddEntries | RemoveEntries):
                position = messages.refused_entry(refusal.body)
                if position is not None:
                    remaining = operation.entries[position + 1 :]
                    if remaining:
                        skipped.append(operation._replace(entries=remaining))
                    operation = operation._replace(entries=operation.entries[position:][:1])
            elif isinstance(operation, DestroySet) and refusal.number == errno.ENOENT:
                continue
            failures.append(_failure(operation, refusal.number))
        return skipped

    def headers(self) -> dict[str, ListedSet]:
        """List all sets of the namespace by name, without their entries.

        Raises:
            NetlinkError: the kernel did not list them.
        """
        request = messages.headers_request(self.family)
        with doing("list ipsets"):
            bodies = self._client.dump(request)
        return messages.decode_headers(bodies, self.family)

    def entries(self, name: str, kind: SetKind) -> set[SetEntry]:
        """List the entries of a set of the given kind; empty if the set does not exist.

        Raises:
            NetlinkError: the kernel did not list them.
        """
        request = messages.entries_request(self.family, name)
        try:
            with doing(f"list ipset {name}"):
                bodies = self._client.dump(request)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return set()
            raise
        return set(messages.decode_entries(bodies, kind))

    def missing_types(self, types: Iterable[str]) -> list[str]:
        """Return the set types that the kernel lacks; asking makes it load their modules."""
        return [name for name in types if not self._has_type(name)]

    def _has_type(self, name: str) -> bool:
        try:
            self._client.get(messages.type_request(self.family, name))
        except NetlinkError:
            return False
        return True


def _has_entries(operation: SetOperation) -> bool:
    return isinstance(operation, AddEntries | RemoveEntries)


def _failure(operation: SetOperation, number: int) -> Failure:
    reason = messages.explanation(operation, number) or os.strerror(number)
    return Failure(operation, number, reason)
