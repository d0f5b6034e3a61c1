"""Sets of addresses and ports in the kernel, for one family: ipset without the program."""

import errno
import os
from collections.abc import Iterable, Sequence
from itertools import groupby

from svcproxy.backends.ipvs import ipset_messages as messages
from svcproxy.backends.ipvs.failing import failed
from svcproxy.backends.ipvs.ipset_messages import ListedSet, Piece
from svcproxy.backends.ipvs.operations import (
    AddEntries,
    DestroySet,
    Failure,
    RemoveEntries,
    SetOperation,
)
from svcproxy.backends.ipvs.values import SetEntry, SetKind
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.socket import NETFILTER


class Sets:
    """The ipsets of the network namespace of the thread that makes it; for that thread alone.

    Raises:
        BackendError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        try:
            self._client = NetlinkClient(NETFILTER)
        except OSError as error:
            raise failed("open a netfilter netlink socket", error) from error

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return self._client.sent

    def execute(self, operations: Sequence[SetOperation]) -> list[Failure]:
        """Carry out operations in their order; one that fails stops none of the others.

        Raises:
            BackendError: the kernel did not answer; what was done is unknown.
        """
        failures: list[Failure] = []
        for _, group in groupby(operations, _has_entries):
            pieces = [piece for op in group for piece in messages.pieces(op, self.family)]
            rest = self._execute(pieces, failures)
            # The kernel stops a message at its first refused entry. One for each of the others
            # costs little, and does not ask how many more of them will be refused.
            again = [piece for op in rest for piece in messages.singly(op, self.family)]
            self._execute(again, failures)
        return failures

    def _execute(
        self, pieces: Sequence[Piece], failures: list[Failure]
    ) -> list[AddEntries | RemoveEntries]:
        """Send; add what was refused to ``failures``, and return what was not looked at."""
        rest: list[AddEntries | RemoveEntries] = []
        try:
            refusals = self._client.execute([piece.request for piece in pieces])
        except OSError as error:
            raise failed(f"send {len(pieces)} messages to ipset", error) from error
        for refusal in refusals:
            operation = pieces[refusal.position].operation
            if isinstance(operation, AddEntries | RemoveEntries):
                position = messages.refused_entry(refusal.body)
                if position is not None:
                    left = operation.entries[position + 1 :]
                    if left:
                        rest.append(operation._replace(entries=left))
                    operation = operation._replace(entries=operation.entries[position:][:1])
            elif isinstance(operation, DestroySet) and refusal.number == errno.ENOENT:
                continue
            failures.append(_failure(operation, refusal.number))
        return rest

    def headers(self) -> dict[str, ListedSet]:
        """All sets of the namespace, without their entries, by name.

        Raises:
            BackendError: the kernel would not list them.
        """
        bodies = self._dump("list ipsets", messages.headers_request(self.family))
        return messages.decode_headers(bodies, self.family)

    def entries(self, name: str, kind: SetKind) -> set[SetEntry]:
        """The entries of a set of this kind; none if there is no such set.

        Raises:
            BackendError: the kernel would not list them.
        """
        request = messages.entries_request(self.family, name)
        try:
            bodies = self._client.dump(request)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return set()
            raise failed(f"list ipset {name}", error) from error
        return set(messages.decode_entries(bodies, kind))

    def missing_types(self, kinds: Iterable[str]) -> list[str]:
        """Which set types the kernel does not have, even after trying to load their modules."""
        return [kind for kind in kinds if not self._has(kind)]

    def _has(self, kind: str) -> bool:
        try:
            self._client.get(messages.type_request(self.family, kind))
        except OSError:
            return False
        return True

    def _dump(self, what: str, request: NetlinkRequest) -> list[bytes]:
        try:
            return self._client.dump(request)
        except OSError as error:
            raise failed(what, error) from error


def _has_entries(operation: SetOperation) -> bool:
    return isinstance(operation, AddEntries | RemoveEntries)


def _failure(operation: SetOperation, number: int) -> Failure:
    reason = messages.explanation(operation, number) or os.strerror(number)
    return Failure(operation, number, reason)
