"""Messages of nfnetlink_acct (``linux/netfilter/nfnetlink_acct.h``): netfilter's packet counters."""

from struct import error

from svcproxy.netlink.core.attributes import U64, collect, text
from svcproxy.netlink.core.messages import FLAG_CREATE, FLAG_EXCLUSIVE, NetlinkRequest
from svcproxy.netlink.errors import MalformedError

_SUBSYSTEM = 7  # NFNL_SUBSYS_ACCT
_NEW, _GET = 0, 1
_NAME, _PACKETS = 1, 2
_HEADER = bytes(4)  # struct nfgenmsg


def create_request(name: str) -> NetlinkRequest:
    """Build the request that creates a counter; EEXIST if there is one of this name."""
    return _request(_NEW, FLAG_CREATE | FLAG_EXCLUSIVE, name)


def get_request(name: str) -> NetlinkRequest:
    """Build the request for one counter; ENOENT if there is none of this name."""
    return _request(_GET, 0, name)


def decode_packets(body: bytes) -> int:
    """Return the number of packets from the answer to ``get_request``.

    Raises:
        MalformedError: the answer has no such number.
    """
    try:
        number: int = U64.unpack(collect(body, len(_HEADER))[_PACKETS])[0]
    except (KeyError, error) as wrong:
        raise MalformedError("no number of packets") from wrong
    return number


def _request(command: int, flags: int, name: str) -> NetlinkRequest:
    return NetlinkRequest(_SUBSYSTEM << 8 | command, flags, _HEADER + text(_NAME, name))
