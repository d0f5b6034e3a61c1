"""Netfilter's packet counters (nfacct): creating and reading them.

Rules with ``-m nfacct`` count packets in them. They belong to a network namespace and stay until
they are deleted.
"""

import errno
from collections.abc import Iterable

from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.nfacct import create_request, decode_packets, get_request
from svcproxy.netlink.errors import RequestRefusedError
from svcproxy.netlink.socket import NETFILTER


def ensure(names: Iterable[str]) -> None:
    """Create the counters that do not exist, with a count of 0.

    Raises:
        NetlinkError: the kernel does not support nfacct, or refuses access.
    """
    with NetlinkClient(NETFILTER) as client:
        for name in names:
            # One by one: without CAP_NET_ADMIN the kernel answers a whole batch only once.
            for refusal in client.execute([create_request(name)]):
                if refusal.number != errno.EEXIST:
                    raise RequestRefusedError(refusal.number)


def packets(names: Iterable[str]) -> dict[str, int]:
    """Return how many packets each counter counted, without counters that do not exist.

    Raises:
        NetlinkError: the kernel does not support nfacct, or refuses access.
    """
    found = {}
    with NetlinkClient(NETFILTER) as client:
        for name in names:
            try:
                found[name] = decode_packets(client.get(get_request(name)).body)
            except RequestRefusedError as error:
                if error.errno != errno.ENOENT:
                    raise
    return found
