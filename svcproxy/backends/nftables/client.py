"""Access to nf_tables with the errors that backends raise."""

from collections.abc import Sequence

from svcproxy.backends.base import BackendError, TransactionError
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.netlink.errors import InterruptedDumpError, NetlinkError, RequestRefusedError
from svcproxy.netlink.nf_tables import (
    GenerationChangedError,
    NfTables,
    RefusedMessage,
    TransactionRefusedError,
)


class StaleGenerationError(TransactionError):
    """nf_tables changed after the generation on which a transaction depends."""


class RefusedError(TransactionError):
    """The kernel refused a transaction and executed none of it.

    Attributes:
        refusals: every refused message, in order; ``message``, ``offset`` and ``number`` describe
            the first. Within one message the kernel stops at the first element that it refuses.
        message: the refused message, ``None`` if unknown.
        offset: the position of the offending attribute in it, 0 if unknown.
        number: the error number.
        partial: an earlier stage of the same plan was executed.
    """

    def __init__(self, *refusals: RefusedMessage) -> None:
        first = refusals[0]
        super().__init__(first.reason)
        self.refusals = refusals
        self.partial = False
        self.number = first.number
        self.message = first.message
        self.offset = first.offset


class NftablesClient:
    """The nf_tables of one family, for one thread; see ``NfTables``.

    Raises:
        OSError: the kernel has no netfilter netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self._nf_tables = NfTables(family)
        self.port_id = self._nf_tables.port_id
        """The socket's netlink address; events name it as the source of a change."""
        self.namespace = self._nf_tables.namespace
        """A number that only connections in the same network namespace share (Linux 5.14)."""

    def close(self) -> None:
        """Close the socket."""
        self._nf_tables.close()

    def transact(
        self, messages: Sequence[Message], generation: int = 0, *, check: bool = False
    ) -> None:
        """Have the kernel execute a transaction completely or not at all.

        Args:
            messages: the messages of the transaction.
            generation: refuse the transaction if nf_tables has changed since this generation; 0
                for any generation.
            check: validate the transaction without executing it.

        Raises:
            StaleGenerationError: the generation is another one by now.
            RefusedError: the kernel refused.
            BackendError: it is unknown whether the transaction was executed.
        """
        try:
            self._nf_tables.transact(messages, generation, check=check)
        except GenerationChangedError as error:
            raise StaleGenerationError(str(error)) from error
        except TransactionRefusedError as error:
            raise RefusedError(*error.refused) from error
        except NetlinkError as error:
            raise BackendError(str(error)) from error

    def generation(self) -> int:
        """Return the current generation; every transaction of any process increments it.

        Raises:
            BackendError: the kernel did not return it.
        """
        try:
            return self._nf_tables.generation()
        except NetlinkError as error:
            raise _backend_error(error) from error

    def get(self, kind: int, attributes: bytes) -> bytes | None:
        """Return the attributes of one object, ``None`` if there is none.

        Raises:
            BackendError: the kernel refused or did not answer.
        """
        try:
            return self._nf_tables.get(kind, attributes)
        except NetlinkError as error:
            raise _backend_error(error) from error

    def dump(self, kind: int, attributes: bytes = b"") -> list[bytes]:
        """Return the attributes of all objects of a kind.

        Raises:
            InterruptedDumpError: a transaction during the dump made it inconsistent.
            BackendError: the kernel refused or did not answer.
        """
        try:
            return self._nf_tables.dump(kind, attributes)
        except InterruptedDumpError:
            raise
        except NetlinkError as error:
            raise _backend_error(error) from error


def _backend_error(error: NetlinkError) -> BackendError:
    if isinstance(error, RequestRefusedError):
        return RefusedError(RefusedMessage(str(error), error.errno or 0, None, 0))
    return BackendError(f"nf_tables: {error}")
