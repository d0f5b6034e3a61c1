"""Messages of IPVS's generic netlink interface: encoding requests, decoding answers.

The numbers are those of ``linux/ip_vs.h`` and ``linux/genetlink.h``. Attributes are in host byte
order except addresses, ports and the IPv4 netmask. Every virtual server forwards by masquerading.
Persistence distinguishes clients by their full address.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, assert_never

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.attributes import attribute, collect, nest, string
from svcproxy.netlink.core.families import FAMILY_NUMBERS, PROTOCOL_NUMBERS
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
)

CONTROLLER = 0x10
"""The message type of generic netlink's controller, which resolves family names."""
FAMILY_NAME = b"IPVS\0"

_GET_FAMILY, _CONTROL_ID, _CONTROL_NAME = 3, 1, 2
_NEW_SERVICE, _SET_SERVICE, _DELETE_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DESTINATION, _SET_DESTINATION, _DELETE_DESTINATION, _GET_DESTINATION = 5, 6, 7, 8
_SET_CONFIG, _GET_CONFIG, _GET_INFO = 12, 13, 15

_SERVICE, _DESTINATION, _TIMEOUT_TCP, _TIMEOUT_TCP_FIN, _TIMEOUT_UDP = 1, 2, 4, 5, 6
_FAMILY, _PROTOCOL, _ADDRESS, _PORT, _SCHEDULER = 1, 2, 3, 4, 6
_FLAGS, _PERSISTENCE, _NETMASK = 7, 8, 9
_REAL_ADDRESS, _REAL_PORT, _METHOD, _WEIGHT, _UPPER, _LOWER = 1, 2, 3, 4, 5, 6
_ACTIVE, _INACTIVE, _PERSISTENT = 7, 8, 9
_METHOD_MASQUERADE = 0

_U16, _U32, _BIG_U16, _BIG_U32 = Struct("=H"), Struct("=I"), Struct("!H"), Struct("!I")
_COMMAND = Struct("=BBH")
_PAIR = Struct("=II")
_ALL = 0xFFFFFFFF
_LENGTHS = {2: 4, 10: 16}
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
_FULL_NETMASK = {2: _BIG_U32.pack(_ALL), 10: _U32.pack(128)}
"""For IPv6 the kernel expects a prefix length in host byte order."""

UNREADABLE = (KeyError, ValueError, struct.error, IndexError, StopIteration)
"""Exceptions of decoding a malformed object; decoders skip such an object."""

_COMMANDS = {
    AddVirtualServer: _NEW_SERVICE,
    SetVirtualServer: _SET_SERVICE,
    DeleteVirtualServer: _DELETE_SERVICE,
    AddRealServer: _NEW_DESTINATION,
    SetRealServer: _SET_DESTINATION,
    DeleteRealServer: _DELETE_DESTINATION,
}


class Timeouts(NamedTuple):
    """Timeouts of idle connections in seconds; 0 leaves a timeout unchanged when setting."""

    tcp: int
    tcp_fin: int
    udp: int


class Info(NamedTuple):
    """The version of IPVS, such as ``1.2.1``, and the size of its connection table."""

    version: str
    connections: int


def family_request() -> NetlinkRequest:
    """Ask for the message type of IPVS; ENOENT means that ``ip_vs`` is not loaded."""
    body = _command(_GET_FAMILY) + attribute(_CONTROL_NAME, FAMILY_NAME)
    return NetlinkRequest(CONTROLLER, 0, body)


def decode_family(body: bytes) -> int:
    """Decode the message type in the answer to ``family_request``."""
    return int(_U16.unpack(_attributes(body)[_CONTROL_ID])[0])


def operation_request(kind: int, operation: ServerOperation) -> NetlinkRequest:
    """Encode an operation; ``kind`` is the message type of IPVS."""
    command = _command(_COMMANDS[type(operation)])
    match operation:
        case AddVirtualServer() | SetVirtualServer():
            service = _identity(operation.key) + _properties(operation.key, operation.server)
            body = nest(_SERVICE, service)
        case DeleteVirtualServer():
            body = nest(_SERVICE, _identity(operation.key))
        case AddRealServer() | SetRealServer():
            destination = _real_identity(operation.key) + _weighted(operation.weight)
            body = nest(_SERVICE, _identity(operation.virtual)) + nest(_DESTINATION, destination)
        case DeleteRealServer():
            destination = _real_identity(operation.key)
            body = nest(_SERVICE, _identity(operation.virtual)) + nest(_DESTINATION, destination)
        case _:
            assert_never(operation)
    return NetlinkRequest(kind, 0, command + body)


def correction(operation: ServerOperation, number: int) -> ServerOperation | None:
    """Return the change to make instead of an addition that failed with EEXIST."""
    if number == errno.EEXIST and isinstance(operation, AddVirtualServer):
        return SetVirtualServer(*operation)
    if number == errno.EEXIST and isinstance(operation, AddRealServer):
        return SetRealServer(*operation)
    return None


def is_done(operation: ServerOperation, number: int) -> bool:
    """Whether an error of a deletion means that the object does not exist any longer."""
    gone = number in {errno.ESRCH, errno.ENOENT}
    return gone and isinstance(operation, DeleteVirtualServer | DeleteRealServer)


def explanation(operation: ServerOperation, number: int) -> str:
    """Explain an error whose errno text would mislead; empty if the errno text will do."""
    if number == errno.ESRCH:
        return "there is no such virtual server"
    if number == errno.ENOENT:
        if isinstance(operation, AddVirtualServer | SetVirtualServer):
            name = operation.server.scheduler
            return f"there is no scheduler {name!r}: load the kernel module ip_vs_{name}"
        return "there is no such real server"
    return ""


def virtual_servers_request(kind: int) -> NetlinkRequest:
    """List the virtual servers of all families."""
    return NetlinkRequest(kind, 0, _command(_GET_SERVICE))


def virtual_server_request(kind: int, key: VirtualServerKey) -> NetlinkRequest:
    """Ask for one virtual server; ESRCH means that it does not exist."""
    return NetlinkRequest(kind, 0, _command(_GET_SERVICE) + nest(_SERVICE, _identity(key)))


def real_servers_request(kind: int, key: VirtualServerKey) -> NetlinkRequest:
    """List the real servers of one virtual server; the list is empty if it does not exist."""
    return NetlinkRequest(kind, 0, _command(_GET_DESTINATION) + nest(_SERVICE, _identity(key)))


def timeouts_request(kind: int) -> NetlinkRequest:
    """Ask for the connection timeouts."""
    return NetlinkRequest(kind, 0, _command(_GET_CONFIG))


def set_timeouts_request(kind: int, timeouts: Timeouts) -> NetlinkRequest:
    """Set the timeouts that are not 0."""
    kinds = (_TIMEOUT_TCP, _TIMEOUT_TCP_FIN, _TIMEOUT_UDP)
    given = (
        attribute(k, _U32.pack(seconds))
        for k, seconds in zip(kinds, timeouts, strict=True)
        if seconds
    )
    return NetlinkRequest(kind, 0, _command(_SET_CONFIG) + b"".join(given))


def info_request(kind: int) -> NetlinkRequest:
    """Ask for the version and the size of the connection table."""
    return NetlinkRequest(kind, 0, _command(_GET_INFO))


def decode_virtual_servers(
    bodies: Iterable[bytes], family: IPFamily
) -> Iterator[tuple[VirtualServerKey, VirtualServer]]:
    """Decode the virtual servers of one family in the answers to ``virtual_servers_request``.

    Virtual servers that match a firewall mark have no address and are skipped.
    """
    number = FAMILY_NUMBERS[family]
    family_attribute = attribute(_FAMILY, _U16.pack(number))[: 4 + _U16.size]
    for body in bodies:
        if family_attribute not in body:
            continue  # cheaper than decoding: the other family may have 10,000
        try:
            found = collect(_attributes(body)[_SERVICE])
            if _ADDRESS in found and _U16.unpack(found[_FAMILY])[0] == number:
                decoded = _decoded_virtual_server(found, number)
            else:
                continue
        except UNREADABLE:
            continue
        if decoded is not None:
            yield decoded


def _decoded_virtual_server(
    found: dict[int, bytes], family: int
) -> tuple[VirtualServerKey, VirtualServer] | None:
    protocol = _PROTOCOLS.get(_U16.unpack(found[_PROTOCOL])[0])
    if protocol is None:
        return None
    key = VirtualServerKey(protocol, *_address(found, _ADDRESS, _PORT, family))
    flags, _ = _PAIR.unpack(found[_FLAGS])
    kept = flags & ~ServerFlag.HASHED
    # The kernel also stores a timeout for virtual servers without persistence.
    timeout = _number(found, _PERSISTENCE) if kept & ServerFlag.PERSISTENT else 0
    return key, VirtualServer(string(found[_SCHEDULER]), kept, timeout)


def decode_real_servers(
    bodies: Iterable[bytes], family: IPFamily
) -> Iterator[tuple[RealServerKey, tuple[int, Connections]]]:
    """Decode weights and connections in the answers to ``real_servers_request``."""
    for body in bodies:
        try:
            found = collect(_attributes(body)[_DESTINATION])
            key = RealServerKey(*_address(found, _REAL_ADDRESS, _REAL_PORT, FAMILY_NUMBERS[family]))
            counts = [_number(found, kind) for kind in (_ACTIVE, _INACTIVE, _PERSISTENT)]
            weight = _number(found, _WEIGHT)
        except UNREADABLE:
            continue
        yield key, (weight, Connections(*counts))


def decode_timeouts(body: bytes) -> Timeouts:
    """Decode the answer to ``timeouts_request``."""
    found = _attributes(body)
    kinds = (_TIMEOUT_TCP, _TIMEOUT_TCP_FIN, _TIMEOUT_UDP)
    return Timeouts(*(_number(found, kind) for kind in kinds))


def decode_info(body: bytes) -> Info:
    """Decode the answer to ``info_request``."""
    found = _attributes(body)
    version = _number(found, 1)
    parts = (version >> 16 & 0xFF, version >> 8 & 0xFF, version & 0xFF)
    return Info(".".join(map(str, parts)), _number(found, 2))


@lru_cache(maxsize=256)  # requests for real servers of one virtual server follow each other
def _identity(key: VirtualServerKey) -> bytes:
    address = packed(key.address)
    return b"".join(
        (
            attribute(_FAMILY, _U16.pack(FAMILY_NUMBERS[_family_of(address)])),
            attribute(_PROTOCOL, _U16.pack(PROTOCOL_NUMBERS[key.protocol])),
            attribute(_ADDRESS, address),
            attribute(_PORT, _BIG_U16.pack(key.port)),
        )
    )


def _properties(key: VirtualServerKey, server: VirtualServer) -> bytes:
    family = 10 if ":" in key.address else 2
    return b"".join(
        (
            attribute(_SCHEDULER, server.scheduler.encode() + b"\0"),
            attribute(_FLAGS, _PAIR.pack(server.flags, _ALL)),
            attribute(_PERSISTENCE, _U32.pack(server.timeout)),
            attribute(_NETMASK, _FULL_NETMASK[family]),
        )
    )


def _real_identity(key: RealServerKey) -> bytes:
    address = attribute(_REAL_ADDRESS, packed(key.address))
    return address + attribute(_REAL_PORT, _BIG_U16.pack(key.port))


@lru_cache(maxsize=16)
def _weighted(weight: int) -> bytes:
    values = ((_METHOD, _METHOD_MASQUERADE), (_WEIGHT, weight), (_UPPER, 0), (_LOWER, 0))
    return b"".join(attribute(kind, _U32.pack(value)) for kind, value in values)


def _family_of(address: bytes) -> IPFamily:
    return IPFamily.IPV4 if len(address) == 4 else IPFamily.IPV6


def _command(number: int) -> bytes:
    return _COMMAND.pack(number, 1, 0)


def _attributes(body: bytes) -> dict[int, bytes]:
    return collect(body, _COMMAND.size)


def _number(found: dict[int, bytes], kind: int) -> int:
    return int(_U32.unpack(found[kind])[0])


def _address(found: dict[int, bytes], address: int, port: int, family: int) -> tuple[str, int]:
    # The kernel always sends 16 bytes; IPv4 uses the first four.
    return text(found[address][: _LENGTHS[family]]), _BIG_U16.unpack(found[port])[0]
