"""Reads and changes one nftables table in the kernel."""

import time
from collections.abc import Mapping

from svcproxy.backends.base import BackendError
from svcproxy.backends.nftables.client import (
    NftablesClient,
    RefusedError,
    StaleGenerationError,
)
from svcproxy.backends.nftables.core.table_sets import AFFINITY
from svcproxy.backends.own_generations import own_generations
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.nf_tables import dump
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import EncodedElements, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import (
    Message,
    Plan,
    explain,
    messages,
    split,
    stages,
)
from svcproxy.netlink.errors import InterruptedDumpError, MalformedError
from svcproxy.netlink.nf_tables import RefusedMessage

_READ_ATTEMPTS = 10
_DUMP_ATTEMPTS = 5
_DUMP_PAUSE = 0.02


class KernelTable:
    """The table of one family and name, accessed through its own netlink socket.

    While this process made all generations since the table was last read or written, the table is
    unchanged. After a transaction of another program, the table handle shows whether the table is
    still the same one; changes inside it are detected by the watcher.
    """

    def __init__(self, family: IPFamily, name: str) -> None:
        self.family = family
        self.name = name
        self._table_name = text(nft.TABLE_OF, name)
        self._client = NftablesClient(family)
        self._own = own_generations(self._client.namespace)
        self._generation = 0
        self._handle = 0
        self._only_own_changes = False

    @property
    def port_id(self) -> int:
        """The port ID of the netlink socket."""
        return self._client.port_id

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    def generation(self) -> int:
        """Return the kernel's current nf_tables generation."""
        return self._client.generation()

    def is_unchanged(self) -> bool:
        """Whether this process made all changes to nf_tables since the table was read or made."""
        return self._is_same_table() and self._only_own_changes

    def _is_same_table(self) -> bool:
        """Whether the table is still the one that was read or written last.

        The check costs one netlink request, two after another program's transaction. The
        generation that it finds becomes the one that incremental plans start from.
        """
        current = self._client.generation()
        own = self._own.made_all(self._generation, current)
        self._generation = current
        if own:
            return bool(self._handle)
        self._only_own_changes = False
        return bool(self._handle) and self._current_handle() == self._handle

    def _current_handle(self) -> int:
        found = self._client.get(nft.GET_TABLE, self._table_name)
        try:
            return dump.table_handle(found) if found is not None else 0
        except MalformedError as error:
            raise BackendError(f"cannot understand table {self.name}: {error}") from error

    def read(self) -> TableDump:
        """Read the table, except the clients that the affinity map remembers.

        Raises:
            BackendError: the kernel refused, or the table changed during every attempt.
        """
        for _ in range(_READ_ATTEMPTS):
            try:
                observed = self._read()
            except InterruptedDumpError:
                continue
            except MalformedError as error:
                raise BackendError(f"cannot understand table {self.name}: {error}") from error
            self._generation, self._handle = observed.generation, observed.handle
            self._only_own_changes = self._own.made_all(
                observed.generation, self._client.generation()
            )
            return observed
        raise BackendError(f"table {self.name} changes faster than it can be read")

    def _read(self) -> TableDump:
        client = self._client
        observed = TableDump(generation=client.generation())
        table = client.get(nft.GET_TABLE, self._table_name)
        if table is None:
            return observed
        observed.handle, observed.flags = dump.table_handle(table), dump.table_flags(table)
        if observed.flags & dump.OWNED:
            raise BackendError(
                f"table {self.name} is owned by another process, with netlink port ID"
                f" {dump.table_owner(table)} (usually its process ID), and no other process may"
                " change it: end that process"
            )
        for body in client.dump(nft.GET_CHAIN, self._table_name):
            dump.add_chain(observed, body, self.name)
        for body in client.dump(nft.GET_RULE, self._table_name):
            dump.add_rule(observed, body, self.name)
        for body in client.dump(nft.GET_SET, self._table_name):
            dump.add_set(observed, body, self.name)
        for name, description in observed.sets.items():
            if name != AFFINITY:
                observed.elements[name] = self._read_elements(name, description)
        return observed

    def _read_elements(self, name: str, description: bytes) -> EncodedElements:
        """Read the elements of one set.

        A dump may omit elements while the kernel resizes the set's hash table (``rhashtable``),
        which can last some time after many elements were added. Newer kernels report the number
        of elements; the dump is repeated until it matches.
        """
        count = dump.element_count(description)
        set_name = self._table_name + text(nft.NAME_OF, name)
        found: EncodedElements = {}
        for attempt in range(_DUMP_ATTEMPTS):
            if attempt:
                time.sleep(_DUMP_PAUSE)
            bodies = self._client.dump(nft.GET_ELEMENT, set_name)
            found.update(dump.elements(bodies, dump.key_length(description)))
            if count is None or len(found) == count:
                break
        return found

    def read_clients(self, observed: TableDump) -> EncodedElements:
        """Read the clients that the affinity map remembers, with their remaining times.

        Args:
            observed: the table as ``read`` returned it.

        Raises:
            BackendError: the kernel refused, or the table changed during every attempt.
        """
        description = observed.sets.get(AFFINITY)
        if description is None:
            return {}
        where = self._table_name + text(nft.NAME_OF, AFFINITY)
        for _ in range(_READ_ATTEMPTS):
            try:
                bodies = self._client.dump(nft.GET_ELEMENT, where)
                return dump.elements(bodies, dump.key_length(description))
            except InterruptedDumpError:
                continue
            except MalformedError as error:
                raise BackendError(f"cannot understand table {self.name}: {error}") from error
        raise BackendError(f"table {self.name} changes faster than it can be read")

    def shape(self) -> tuple[dict[str, int | None], dict[str, int]]:
        """Return the number of elements of each set, and of rules of each chain.

        This is much cheaper than ``read``. Kernels that do not report the number of elements have
        ``None`` for it.

        Raises:
            BackendError: the kernel refused, or the table changed meanwhile.
        """
        observed = TableDump()
        client = self._client
        try:
            for body in client.dump(nft.GET_SET, self._table_name):
                dump.add_set(observed, body, self.name)
            for body in client.dump(nft.GET_CHAIN, self._table_name):
                dump.add_chain(observed, body, self.name)
            for body in client.dump(nft.GET_RULE, self._table_name):
                dump.add_rule(observed, body, self.name)
        except (InterruptedDumpError, MalformedError) as error:
            raise BackendError(f"cannot read table {self.name}: {error}") from error
        sizes = {name: dump.element_count(body) for name, body in observed.sets.items()}
        return sizes, {name: len(observed.rules.get(name, ())) for name in observed.chains}

    def commit(self, plan: Plan, sets: Mapping[str, SetSpec]) -> None:
        """Apply a plan. Each of its stages is a transaction; new rules and sets come first.

        Args:
            plan: the plan. If it results from a comparison, it is refused when nf_tables has
                changed since the table was read. An incremental plan is only refused when the
                table was replaced; other programs' changes to other tables do not matter.
            sets: the sets of the table, to describe elements in errors.

        Raises:
            StaleGenerationError: the table may have changed since the plan was made.
            RefusedError: the kernel refused; ``partial`` says whether an earlier stage was applied.
            BackendError: it is unknown what was applied.
        """
        for number, stage in enumerate(stages(plan)):
            if number and plan.generation:
                stage.generation = self._generation
            try:
                self._commit(stage, sets)
            except RefusedError as error:
                error.partial = number > 0
                raise

    def _commit(self, plan: Plan, sets: Mapping[str, SetSpec]) -> None:
        todo = list(messages(plan, self.name))
        generation = self._base_generation(plan)
        while True:
            try:
                self._client.transact(todo, generation)
            except StaleGenerationError:
                if not self._is_still_valid(plan):
                    raise
                generation = self._base_generation(plan)
            except RefusedError as error:
                raise with_object_name(error, sets) from None
            else:
                break
        self._only_own_changes = self._only_own_changes or plan.make_table
        self._own.add(generation + 1)
        self._generation = generation + 1
        if plan.make_table:
            self._handle = self._current_handle()

    def _base_generation(self, plan: Plan) -> int:
        """Return the generation that a transaction is based on; the kernel refuses any other."""
        if plan.compared:
            return plan.generation or self._client.generation()
        # The other family's transactions have advanced the generation, but not this table.
        self._generation = self._own.latest(self._generation)
        return self._generation

    def _is_still_valid(self, plan: Plan) -> bool:
        """Whether a plan that the kernel refused as stale can be sent again."""
        if plan.compared:
            return not plan.generation
        return self._is_same_table()

    def check(self, todo: list[Message], sets: Mapping[str, SetSpec]) -> None:
        """Let the kernel validate a transaction without applying it.

        Raises:
            BackendError: the kernel would refuse it.
        """
        try:
            self._client.transact(todo, check=True)
        except RefusedError as error:
            raise with_object_name(error, sets) from None

    def refusals(
        self, plan: Plan, error: RefusedError, sets: Mapping[str, SetSpec]
    ) -> list[tuple[Message, str]]:
        """Return every message of a refused plan that the kernel refuses, with the reason.

        The kernel names at most one element of a message. So the elements of refused messages are
        validated as one message each, in one more transaction that is not applied.

        Raises:
            BackendError: the kernel did not answer.
        """
        suspect = [r.message for r in error.refusals if r.message is not None]
        found = error.refusals
        if any(len(list(split(message))) > 1 for message in suspect):
            todo = list(messages(plan, self.name))
            apart = [
                m for message in todo for m in (split(message) if message in suspect else [message])
            ]
            found = ()
            try:
                self._client.transact(apart, check=True)
            except RefusedError as refused:
                found = refused.refusals
        return [(r.message, _text(r, sets)) for r in found if r.message is not None]

    def delete(self) -> bool:
        """Delete the table; return whether it existed.

        Raises:
            BackendError: the kernel refused.
        """
        exists = bool(self._current_handle())
        if exists:
            self.commit(Plan(delete_table=True, compared=True), {})
        self._handle = 0
        return exists


def with_object_name(error: RefusedError, sets: Mapping[str, SetSpec]) -> RefusedError:
    """Return the same error with the refused object in its text."""
    error.args = (_text(error.refusals[0], sets),)
    return error


def _text(refusal: RefusedMessage, sets: Mapping[str, SetSpec]) -> str:
    if refusal.message is None:
        return refusal.reason
    return f"{explain(refusal.message, refusal.offset, sets)}: {refusal.reason}"
