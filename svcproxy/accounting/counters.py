"""Reads the counters of the accounting table."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator

from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Reading
from svcproxy.accounting.core.table import (
    CONNECTIONS,
    OF_NODE_PORTS,
    REFUSED,
    TABLE,
    UNSERVED,
    element_key,
    frontend_of,
    reason_of,
)
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import attribute, collect, nest, text
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import elements, packets
from svcproxy.netlink.errors import (
    InterruptedDumpError,
    MalformedError,
    NetlinkError,
    RequestRefusedError,
)
from svcproxy.netlink.nf_tables import NfTables

_ATTEMPTS = 5
_ABSENT = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
_USER_DATA = 6


class CountersUnreadableError(Exception):
    """The accounting table cannot be read; the message is one line with the reason."""


def read_counters(family: IPFamily) -> dict[FrontendKey, Reading] | None:
    """Return the counters of all frontends of a family; ``None`` if there is no accounting table.

    Frontends whose connections are not counted are absent unless they refuse or drop.

    Raises:
        CountersUnreadableError: the kernel refused.
    """
    found: dict[FrontendKey, Reading] = {}
    present = False
    try:
        tables = NfTables(family)
        try:
            for kind in (CONNECTIONS, UNSERVED):
                for prefix in ("", OF_NODE_PORTS):
                    members = _dump(tables, prefix + kind)
                    present = present or members is not None
                    for key, reading in _readings(family, kind, members or {}):
                        found[key] = found.get(key, Reading()).plus(reading)
        finally:
            tables.close()
    except NetlinkError as error:
        raise CountersUnreadableError(f"cannot read table {TABLE}: {error}") from error
    return found if present else None


def read_refused(family: IPFamily) -> dict[FrontendKey, Reading]:
    """Return the counters of the frontends that refuse or drop now, without their connections.

    Raises:
        CountersUnreadableError: the kernel refused.
    """
    found: dict[FrontendKey, Reading] = {}
    try:
        tables = NfTables(family)
        try:
            for prefix in ("", OF_NODE_PORTS):
                found.update(_readings(family, UNSERVED, _dump(tables, prefix + UNSERVED) or {}))
        finally:
            tables.close()
    except NetlinkError as error:
        raise CountersUnreadableError(f"cannot read table {TABLE}: {error}") from error
    return found


def read_some(
    family: IPFamily,
    wanted: Iterable[FrontendKey],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[FrontendKey, Reading]:
    """Return the counters of some frontends; those that the table does not have are absent.

    Args:
        family: the IP family.
        wanted: the frontends.
        seconds: how long it may take; what was not read by then is absent.
        clock: monotonic seconds.

    Raises:
        CountersUnreadableError: the kernel refused.
    """
    end = clock() + seconds
    found: dict[FrontendKey, Reading] = {}
    try:
        tables = NfTables(family)
        try:
            for key in wanted:
                if clock() > end:
                    break
                for reading in _get(tables, key):
                    found[key] = found.get(key, Reading()).plus(reading)
        finally:
            tables.close()
    except NetlinkError as error:
        raise CountersUnreadableError(f"cannot read table {TABLE}: {error}") from error
    return found


def _get(tables: NfTables, key: FrontendKey) -> Iterator[Reading]:
    prefix, packed = element_key(key)
    asked = nest(3, nest(nft.LIST_ELEMENT, nest(1, attribute(1, packed))))
    for kind in (CONNECTIONS, UNSERVED):
        body = tables.get(nft.GET_ELEMENT, _set_name(prefix + kind) + asked)
        if body is not None:
            members = elements([body], len(packed))
            yield from (reading for _, reading in _readings(tables.family, kind, members))


def _set_name(name: str) -> bytes:
    return text(nft.TABLE_OF, TABLE) + text(nft.NAME_OF, name)


def _dump(tables: NfTables, name: str) -> dict[bytes, bytes] | None:
    """Return the elements of a set; ``None`` if there is none."""
    length = 8 if name.startswith(OF_NODE_PORTS) else 8 + tables.family.bits // 8
    for _ in range(_ATTEMPTS):
        try:
            return elements(tables.dump(nft.GET_ELEMENT, _set_name(name)), length)
        except InterruptedDumpError:
            continue
        except RequestRefusedError as error:
            if error.errno in _ABSENT:
                return None
            raise
    raise InterruptedDumpError(f"interrupted {_ATTEMPTS} times")


def _readings(
    family: IPFamily, kind: str, members: dict[bytes, bytes]
) -> Iterator[tuple[FrontendKey, Reading]]:
    for packed, encoded in members.items():
        try:
            key, count = frontend_of(family, packed), packets(encoded)
            refused = reason_of(collect(encoded).get(_USER_DATA, b"")) == REFUSED
        except MalformedError:
            continue
        if key is None:
            continue
        if kind == CONNECTIONS:
            yield key, Reading(connections=count)
        else:
            yield key, Reading(refused=count) if refused else Reading(dropped=count)
