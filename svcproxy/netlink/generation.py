"""The nf_tables generation: a cheap way to detect that another process changed nf_tables.

Every nf_tables transaction in a network namespace, including those of iptables' nft variant,
increments it (``NFT_MSG_GETGEN``, Linux 4.10). The query takes some 20 µs; reading the rules of
10,000 Services takes a second.
"""

import errno

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.messages import FLAG_CREATE, NetlinkRequest
from svcproxy.netlink.core.nf_tables import dump
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.nf_tables import NfTables, TransactionRefusedError
from svcproxy.netlink.socket import NETFILTER, NetlinkSocket

_TIMEOUT_SECONDS = 1.0
_DATAGRAM_BYTES = 4096
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT})


def generation() -> int | None:
    """Return this network namespace's nf_tables generation; ``None`` if the kernel has none."""
    request = NetlinkRequest(
        nft.message_type(nft.GET_GENERATION), 0, nft.FAMILY_HEADER.pack(0, 0, 0)
    )
    try:
        with NetlinkClient(
            NETFILTER,
            timeout_seconds=_TIMEOUT_SECONDS,
            datagram_bytes=_DATAGRAM_BYTES,
            receive_buffer_bytes=0,
        ) as client:
            return dump.generation(client.get(request).body[nft.FAMILY_HEADER.size :])
    except NetlinkError:
        return None


def network_namespace() -> int:
    """Return a number of this network namespace; a new one each time before Linux 5.14.

    Raises:
        NetlinkError: the kernel has no netfilter netlink.
    """
    with NetlinkSocket(NETFILTER, datagram_bytes=_DATAGRAM_BYTES, receive_buffer_bytes=0) as made:
        return made.namespace


def has_tables(family: IPFamily) -> bool:
    """Return whether the kernel's nf_tables supports tables of a family.

    The kernel may be built without them; iptables-nft-save then prints nothing and succeeds. The
    kernel validates a new table without creating it (Linux 3.18). If it refuses for another
    reason, such as missing privileges, the family counts as supported.
    """
    table = text(nft.TABLE_OF, "svcproxy-asking")
    try:
        tables = NfTables(family)
    except NetlinkError as error:
        return error.errno != errno.EPROTONOSUPPORT
    try:
        tables.transact([Message(nft.NEW_TABLE, FLAG_CREATE, table, "a table")], check=True)
    except TransactionRefusedError as error:
        return not any(refused.number in _UNSUPPORTED for refused in error.refused)
    except NetlinkError:
        return True
    finally:
        tables.close()
    return True
