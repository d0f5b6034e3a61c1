"""Entries of session affinity: whether they exist, and deleting them."""

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import ipset
from svcproxy.netlink.core.attributes import nest, text
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.nf_tables.protocol import (
    DELETE_ELEMENT,
    GET_ELEMENT,
    NAME_OF,
    TABLE_OF,
)
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, encode_element, key_prefix
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.netlink.errors import NetlinkError, RequestRefusedError
from svcproxy.netlink.nf_tables import NfTables
from svcproxy.netlink.socket import NETFILTER
from svcproxy.probe.core.affinity import AffinityEntry, NftElement, RecentAddress, SetMember
from svcproxy.probe.errors import NotSentError

_RECENT = Path("/proc/thread-self/net/xt_recent")
_RECENT_BYTES = 1 << 20
_ELEMENTS = 3
_LOCK = "\0svcproxy-probe"
"""A name in the abstract namespace of Unix sockets, of which each network namespace has its own."""
_LOCK_SECONDS = 5.0


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Let only one probe with session affinity run at a time in this network namespace.

    Otherwise a second probe could find the entry of the first, take it for that of a client, and
    leave its own. The lock ends with the last process that holds the descriptor, the guardian.

    Yields:
        The descriptor.

    Raises:
        NotSentError: another probe has it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                lock.bind(_LOCK)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise NotSentError(
                        "another probe of a Service with session affinity runs: try again later"
                    ) from error
            time.sleep(_LOCK_SECONDS / 100)
        yield lock.fileno()


def absent(entries: Iterable[AffinityEntry]) -> tuple[AffinityEntry, ...]:
    """Return the entries that do not exist.

    Raises:
        OSError: the kernel did not answer.
    """
    return tuple(entry for entry in entries if not _exists(entry))


def remove(entries: Iterable[AffinityEntry]) -> None:
    """Delete the entries that exist.

    Raises:
        OSError: the kernel refused.
    """
    for entry in entries:
        if not _exists(entry):
            continue
        match entry:
            case NftElement():
                _transact(entry)
            case SetMember():
                _execute(ipset.remove_member_request(entry.family, entry.set, entry.address))
            case RecentAddress():
                (_RECENT / entry.list).write_text(f"-{entry.address}\n", encoding="ascii")


def _exists(entry: AffinityEntry) -> bool:
    match entry:
        case NftElement():
            return _has_element(entry)
        case SetMember():
            return not _execute(ipset.test_member_request(entry.family, entry.set, entry.address))
        case RecentAddress():
            return _is_recent(entry)


def _element(entry: NftElement) -> bytes:
    element = encode_element(key_prefix(len(entry.key)), entry.key, b"")
    return text(TABLE_OF, TABLE) + text(NAME_OF, entry.map) + nest(_ELEMENTS, element)


def _has_element(entry: NftElement) -> bool:
    tables = NfTables(entry.family)
    try:
        return tables.get(GET_ELEMENT, _element(entry)) is not None
    finally:
        tables.close()


def _transact(entry: NftElement) -> None:
    tables = NfTables(entry.family)
    try:
        tables.transact([Message(DELETE_ELEMENT, 0, _element(entry), f"element of {entry.map}")])
    finally:
        tables.close()


def _execute(request: NetlinkRequest) -> int:
    """Return the error number, 0 for success; other errors than of membership are raised."""
    with NetlinkClient(NETFILTER, receive_buffer_bytes=0) as client:
        refused = client.execute([request])
    number = refused[0].number if refused else 0
    if number not in {0, ipset.NOT_A_MEMBER, 2}:
        raise RequestRefusedError(number)
    return number


def _is_recent(entry: RecentAddress) -> bool:
    try:
        with (_RECENT / entry.list).open("rb") as listed:
            content = listed.read(_RECENT_BYTES)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NetlinkError(error.errno or 0) from error
    # Lines begin with src=192.0.2.1, IPv6 addresses with all their digits.
    return f"src={_recent_form(entry.address)} ".encode() in content


def _recent_form(address: str) -> str:
    return ip_address(address).exploded
