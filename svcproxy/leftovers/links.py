"""Removing the link that holds the addresses of virtual servers."""

import errno
import os
import socket
from pathlib import Path
from struct import Struct

from svcproxy.backends.base import BackendError
from svcproxy.netlink.attributes import text

_ROUTE = 0
_DELETE_LINK, _NAME_OF = 17, 3
_REQUEST_ACK = 0x5
_LINK = Struct("=IHHIIBxHiII")
_CODE = Struct("=i")
_ANSWER_CODE_AT = 16
_TIMEOUT = 5.0

_CONNECTIONS = Path("/proc/net/ip_vs_conn")
_OVER = frozenset({"NONE", "TIME_WAIT", "CLOSE", "ERR!"})


def delete_link(name: str) -> bool:
    """Delete a link; whether there was one.

    Raises:
        BackendError: the kernel refused.
    """
    attributes = text(_NAME_OF, name)
    message = _LINK.pack(
        _LINK.size + len(attributes), _DELETE_LINK, _REQUEST_ACK, 1, 0, 0, 0, 0, 0, 0
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _ROUTE) as made:
            made.settimeout(_TIMEOUT)
            made.sendto(message + attributes, (0, 0))
            number = -_CODE.unpack_from(made.recv(4096), _ANSWER_CODE_AT)[0]
    except OSError as error:
        raise BackendError(f"cannot delete the link {name}: {error.strerror}") from error
    if number and number != errno.ENODEV:
        raise BackendError(f"cannot delete the link {name}: {os.strerror(number)}")
    return not number


def has_ipvs_connections() -> bool:
    """Whether TCP connections still go through virtual servers of this network namespace.

    They need the addresses on the link: without them their packets are not for this machine.
    """
    try:
        lines = _CONNECTIONS.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return False
    return any(
        fields[0] == "TCP" and fields[7] not in _OVER
        for line in lines
        if len(fields := line.split()) > 7
    )
