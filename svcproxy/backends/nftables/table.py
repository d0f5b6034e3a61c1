"""One table in the kernel: reading it and changing it."""

import time
from collections.abc import Mapping
from threading import Lock
from weakref import WeakValueDictionary

from svcproxy.backends.base import BackendError
from svcproxy.backends.nftables.connection import (
    Connection,
    InterruptedDumpError,
    Refusal,
    RefusedError,
    StaleGenerationError,
)
from svcproxy.backends.nftables.core.sets import AFFINITY
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import MalformedError, text
from svcproxy.netlink.core.nf_tables import dump
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import Observed
from svcproxy.netlink.core.nf_tables.ruleset import EncodedElements, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import (
    Message,
    Plan,
    explain,
    messages,
    split,
    stages,
)

_READ_ATTEMPTS = 10
_DUMP_ATTEMPTS = 5
_DUMP_PAUSE = 0.02


class Generations:
    """The generations that transactions of this process made, of all its tables.

    The kernel numbers its states: every transaction of anybody, on any table of any family,
    makes the next generation. A transaction that names the one it starts from, and succeeds,
    has therefore made the next.
    """

    _KEPT = 4096

    def __init__(self) -> None:
        self._ours: dict[int, None] = {}
        self._lock = Lock()

    def add(self, generation: int) -> None:
        """Note one of ours."""
        with self._lock:
            self._ours[generation] = None
            if len(self._ours) > self._KEPT:
                del self._ours[next(iter(self._ours))]

    def made_all(self, after: int, last: int) -> bool:
        """Whether all generations that followed one of them, up to another, are ours."""
        if not 0 <= last - after <= self._KEPT:
            return False
        with self._lock:
            return all(number in self._ours for number in range(after + 1, last + 1))


_ours: WeakValueDictionary[int, Generations] = WeakValueDictionary()
"""By network namespace: both families' tables count the same generations."""


class KernelTable:
    """The table of one family and name, through a netlink socket of its own.

    As long as all generations since our last look are our own, the table is as we left it. After
    others' transactions its handle tells whether it is at least the same table; what they did
    inside it is for the watcher to notice.
    """

    def __init__(self, family: IPFamily, name: str) -> None:
        self.family = family
        self.name = name
        self._of = text(nft.TABLE_OF, name)
        self._connection = Connection(family)
        self._ours = _ours.setdefault(self._connection.namespace, Generations())
        self._generation = 0
        self._handle = 0
        self._trusted = False

    @property
    def port_id(self) -> int:
        """The netlink address from which the changes are made."""
        return self._connection.port_id

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def generation(self) -> int:
        """The kernel's present generation."""
        return self._connection.generation()

    def is_same(self) -> bool:
        """Whether the table is still the one that was read or written last.

        It costs a few microseconds. The generation to which the answer belongs becomes the one
        that transactions start from.
        """
        present = self._connection.generation()
        ours = self._ours.made_all(self._generation, present)
        self._generation = present
        if ours:
            return bool(self._handle)
        self._trusted = False
        return bool(self._handle) and self._present_handle() == self._handle

    def is_untouched(self) -> bool:
        """Whether nobody else has changed anything, in any table, since the table was read."""
        return self.is_same() and self._trusted

    def _present_handle(self) -> int:
        found = self._connection.get(nft.GET_TABLE, self._of)
        try:
            return dump.table_handle(found) if found is not None else 0
        except MalformedError as error:
            raise BackendError(f"cannot understand table {self.name}: {error}") from error

    def read(self) -> Observed:
        """Read the table, all but the memory of clients.

        Raises:
            BackendError: the kernel refused, or the table changed all the time.
        """
        for _ in range(_READ_ATTEMPTS):
            try:
                observed = self._read()
            except InterruptedDumpError:
                continue
            except MalformedError as error:
                raise BackendError(f"cannot understand table {self.name}: {error}") from error
            self._generation, self._handle = observed.generation, observed.handle
            self._trusted = self._ours.made_all(observed.generation, self._connection.generation())
            return observed
        raise BackendError(f"table {self.name} changes faster than it can be read")

    def _read(self) -> Observed:
        connection = self._connection
        observed = Observed(generation=connection.generation())
        table = connection.get(nft.GET_TABLE, self._of)
        if table is None:
            return observed
        observed.handle, observed.flags = dump.table_handle(table), dump.table_flags(table)
        if observed.flags & dump.OWNED:
            raise BackendError(
                f"table {self.name} is owned by another process, that with the netlink address"
                f" {dump.table_owner(table)} (usually its process number), and nobody else may"
                " change it: end that process"
            )
        for body in connection.dump(nft.GET_CHAIN, self._of):
            dump.add_chain(observed, body, self.name)
        for body in connection.dump(nft.GET_RULE, self._of):
            dump.add_rule(observed, body, self.name)
        for body in connection.dump(nft.GET_SET, self._of):
            dump.add_set(observed, body, self.name)
        for name, description in observed.sets.items():
            if name != AFFINITY:
                observed.elements[name] = self._read_elements(name, description)
        return observed

    def _read_elements(self, name: str, description: bytes) -> EncodedElements:
        """Read a set.

        While the kernel enlarges a set's hash table (``rhashtable``), which goes on for a while
        after many elements were added, a dump may leave some out. Newer kernels tell how many
        there should be.
        """
        count = dump.element_count(description)
        of = self._of + text(nft.NAME_OF, name)
        found: EncodedElements = {}
        for attempt in range(_DUMP_ATTEMPTS):
            if attempt:
                time.sleep(_DUMP_PAUSE)
            bodies = self._connection.dump(nft.GET_ELEMENT, of)
            found.update(dump.elements(bodies, dump.key_length(description)))
            if count is None or len(found) == count:
                break
        return found

    def commit(self, plan: Plan, sets: Mapping[str, SetSpec]) -> None:
        """Carry out a plan, all of it or nothing; rules and sets that come new come first.

        Args:
            plan: what to do. If it starts from a generation, nobody may have touched the table
                since; what others did to other tables does not matter to an increment.
            sets: to name elements with in errors.

        Raises:
            StaleGenerationError: the table may have changed since the plan was made.
            RefusedError: the kernel refused; ``partial`` says whether something was done before.
            BackendError: nothing is known about what was done.
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
        generation = plan.generation or self._connection.generation()
        while True:
            try:
                self._connection.transact(todo, generation)
            except StaleGenerationError:
                if plan.generation and (plan.compared or not self.is_same()):
                    raise
                generation = self._connection.generation()
            except RefusedError as error:
                raise named(error, sets) from None
            else:
                break
        self._trusted = self._trusted or plan.make_table
        self._ours.add(generation + 1)
        self._generation = generation + 1
        if plan.make_table:
            self._handle = self._present_handle()

    def expected_generation(self) -> int:
        """The generation that ``is_same`` or ``read`` found last."""
        return self._generation

    def check(self, todo: list[Message], sets: Mapping[str, SetSpec]) -> None:
        """Let the kernel check a transaction without doing it.

        Raises:
            BackendError: the kernel would refuse it.
        """
        try:
            self._connection.transact(todo, check=True)
        except RefusedError as error:
            raise named(error, sets) from None

    def refusals(
        self, plan: Plan, error: RefusedError, sets: Mapping[str, SetSpec]
    ) -> list[tuple[Message, str]]:
        """Every message that the kernel refuses of a plan that was refused, and why.

        Where a message with several elements was refused, they are checked one by one, all of
        them in one more transaction that is not carried out.

        Raises:
            BackendError: the kernel did not answer.
        """
        doubtful = [r.message for r in error.refusals if r.message is not None]
        found = error.refusals
        if any(len(list(split(message))) > 1 for message in doubtful):
            todo = list(messages(plan, self.name))
            apart = [
                m
                for message in todo
                for m in (split(message) if message in doubtful else [message])
            ]
            found = ()
            try:
                self._connection.transact(apart, check=True)
            except RefusedError as refused:
                found = refused.refusals
        return [(r.message, _text(r, sets)) for r in found if r.message is not None]

    def delete(self) -> bool:
        """Delete the table if there is one; whether there was.

        Raises:
            BackendError: the kernel refused.
        """
        present = bool(self._present_handle())
        if present:
            self.commit(Plan(delete_table=True), {})
        self._handle = 0
        return present


def named(error: RefusedError, sets: Mapping[str, SetSpec]) -> RefusedError:
    """The same error with the object in its text."""
    error.args = (_text(error.refusals[0], sets),)
    return error


def _text(refusal: Refusal, sets: Mapping[str, SetSpec]) -> str:
    if refusal.message is None:
        return refusal.reason
    return f"{explain(refusal.message, refusal.offset, sets)}: {refusal.reason}"
