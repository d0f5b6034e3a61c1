"""Accounting objects of netfilter (``linux/netfilter/nfnetlink_acct.h``): making and reading them.

Rules with ``-m nfacct`` count packets in them. They belong to a network namespace, and stay until
they are deleted.
"""

import errno
import os
from collections.abc import Iterable
from struct import Struct, error

from svcproxy.netlink.connection import NETFILTER, Connection
from svcproxy.netlink.core.attributes import U64, MalformedError, collect, text
from svcproxy.netlink.core.messages import FLAG_CREATE, FLAG_EXCLUSIVE, Request

_SUBSYSTEM = 7
_NEW, _GET = 0, 1
_NAME, _PACKETS = 1, 2
_HEADER = Struct("=BBH")


def ensure(names: Iterable[str]) -> None:
    """Make the objects that are not there, with all counts at 0.

    Raises:
        OSError: the kernel has no accounting, or does not let us.
    """
    connection = Connection(NETFILTER)
    try:
        flags = FLAG_CREATE | FLAG_EXCLUSIVE
        for name in names:
            # One by one: who lacks CAP_NET_ADMIN gets one answer for all that was sent at once.
            for refusal in connection.execute([_request(_NEW, flags, name)]):
                if refusal.number != errno.EEXIST:
                    raise OSError(refusal.number, os.strerror(refusal.number))
    finally:
        connection.close()


def packets(names: Iterable[str]) -> dict[str, int]:
    """How many packets were counted in each object; those that are not there are left out.

    Raises:
        OSError: the kernel has no accounting, or does not let us.
    """
    connection = Connection(NETFILTER)
    found = {}
    try:
        for name in names:
            try:
                body = connection.ask(_request(_GET, 0, name)).body
            except OSError as refused:
                if refused.errno != errno.ENOENT:
                    raise
            else:
                found[name] = _count_in(body)
    finally:
        connection.close()
    return found


def _count_in(body: bytes) -> int:
    try:
        number: int = U64.unpack(collect(body, _HEADER.size)[_PACKETS])[0]
    except (MalformedError, KeyError, error) as wrong:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from wrong
    return number


def _request(command: int, flags: int, name: str) -> Request:
    return Request(_SUBSYSTEM << 8 | command, flags, _HEADER.pack(0, 0, 0) + text(_NAME, name))
