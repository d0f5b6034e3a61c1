"""The expressions of rules, each encoded as a netlink attribute.

Registers are counted in words of four bytes, from 0 to 15; longer values take several words.
Expressions are encoded as in the kernel's dumps, so that a dumped rule can be compared with the one
that was sent (``attributes.holds``). A condition that does not match ends the rule.
"""

from enum import IntEnum
from struct import Struct

from svcproxy.netlink.core.attributes import U16, attribute, nest, text, u32, u64
from svcproxy.netlink.core.nf_tables.protocol import LIST_ELEMENT

Expression = bytes

_VALUE, _VERDICT = 1, 2


class Header(IntEnum):
    """The header that a payload offset counts from."""

    NETWORK = 1
    TRANSPORT = 2


class Meta(IntEnum):
    """Metadata of a packet; interface names take 16 bytes."""

    MARK = 3
    IIFNAME = 6
    NFTRACE = 12
    L4PROTO = 16


class Conntrack(IntEnum):
    """Properties of a packet's conntrack entry."""

    STATE = 0
    STATUS = 2


STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1, 2, 4, 8
STATUS_DNAT = 0x20
"""IPS_DST_NAT: the destination of the connection is translated."""


class Code(IntEnum):
    """Verdict codes; ``DROP`` and ``ACCEPT`` end the base chain."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4


class Update(IntEnum):
    """The operations of packets on a dynamic set."""

    REFRESH = 1
    DELETE = 2


def _expression(name: str, *attributes: bytes) -> Expression:
    return nest(LIST_ELEMENT, text(1, name), nest(2, *attributes))


def _register(word: int) -> int:
    # The kernel's dumps name words 0, 4, 8 and 12 as the 16-byte registers 1 to 4.
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def payload(header: Header, offset: int, length: int, to: int) -> Expression:
    """Load bytes of the packet into a register."""
    return _expression(
        "payload", u32(1, _register(to)), u32(2, header), u32(3, offset), u32(4, length)
    )


def meta(key: Meta, to: int) -> Expression:
    """Load metadata of the packet into a register."""
    return _expression("meta", u32(2, key), u32(1, _register(to)))


def set_mark(word: int) -> Expression:
    """Set the packet mark to the value of a register."""
    return _expression("meta", u32(2, Meta.MARK), u32(3, _register(word)))


def conntrack(key: Conntrack, to: int) -> Expression:
    """Load a property of the packet's conntrack entry into a register."""
    return _expression("ct", u32(1, _register(to)), u32(2, key))


def address_type(offset: int, to: int) -> Expression:
    """Load the routing table's type of an address: 2 (``RTN_LOCAL``) for the node's addresses.

    Args:
        offset: ``SOURCE`` or ``DESTINATION``.
        to: the register.
    """
    return _expression("fib", u32(1, _register(to)), u32(2, 3), u32(3, offset))


SOURCE, DESTINATION = 1, 2
RTN_LOCAL = Struct("=I").pack(2)


def compare(word: int, value: bytes, *, equal: bool = True) -> Expression:
    """Match if a register has a value, or another one if not ``equal``."""
    return _expression(
        "cmp", u32(1, _register(word)), u32(2, 0 if equal else 1), nest(3, attribute(_VALUE, value))
    )


def bitwise(word: int, mask: bytes, xor: bytes = b"") -> Expression:
    """Set a register to ``register & mask ^ xor``."""
    return _expression(
        "bitwise",
        u32(1, _register(word)),
        u32(2, _register(word)),
        u32(3, len(mask)),
        u32(6, 0),
        nest(4, attribute(_VALUE, mask)),
        nest(5, attribute(_VALUE, xor or bytes(len(mask)))),
    )


def in_set(name: str, word: int) -> Expression:
    """Match if a set contains the key in a register."""
    return _expression("lookup", text(1, name), u32(2, _register(word)))


def map_lookup(name: str, word: int, to: int) -> Expression:
    """Match if a map contains the key in a register, and load its value."""
    return _expression("lookup", text(1, name), u32(2, _register(word)), u32(3, _register(to)))


def random_number(below: int, to: int) -> Expression:
    """Load a random number from 0 to ``below - 1``, uniformly distributed."""
    return _expression("numgen", u32(1, _register(to)), u32(2, below), u32(3, 1), u32(4, 0))


def update(how: Update, name: str, key: int, data: int, seconds: int = 0) -> Expression:
    """Change a dynamic map. A new element gets the data; an existing one only restarts its timer.

    Args:
        how: the operation.
        name: the map.
        key: the register of the key.
        data: the register of the value.
        seconds: the time-out; 0 for none.
    """
    timeout = [u64(6, seconds * 1000)] if seconds else []
    return _expression(
        "dynset",
        u32(4, _register(key)),
        u32(5, _register(data)),
        u32(3, how),
        text(1, name),
        *timeout,
    )


def translate(family: int, address: int, port: int) -> Expression:
    """Translate the destination (DNAT) to the address and port in two registers."""
    return _expression(
        "nat", u32(1, 1), u32(2, family), u32(3, _register(address)), u32(5, _register(port))
    )


def masquerade() -> Expression:
    """Translate the source to the outgoing interface's address and a random port.

    The flag is NF_NAT_RANGE_PROTO_RANDOM_FULLY. Without it two CPUs may choose the same port at the
    same time, and one of the packets is lost.
    """
    return _expression("masq", u32(1, 0x10))


def reject(code: int) -> Expression:
    """Reject with an ICMP error, such as ``port unreachable`` of the packet's IP family."""
    return _expression("reject", u32(1, 0), attribute(2, bytes([code])))


def verdict(code: Code, chain: str = "") -> Expression:
    """End the rule with a verdict; ``chain`` is the target of ``JUMP`` and ``GOTO``."""
    target = [text(2, chain)] if chain else []
    data = nest(2, nest(_VERDICT, u32(1, code & 0xFFFFFFFF), *target))
    return _expression("immediate", u32(1, 0), data)


def limit(per_second: int, burst: int) -> Expression:
    """Match while fewer than ``per_second`` packets arrive, and ``burst`` more at once."""
    return _expression("limit", u64(1, per_second), u64(2, 1), u32(3, burst), u32(4, 0))


def log(group: int, prefix: str) -> Expression:
    """Send the packet's headers to the programs that listen to an nflog group.

    Args:
        group: the number of the group.
        prefix: a text that they get with each packet; at most 127 characters.
    """
    return _expression("log", attribute(1, U16.pack(group)), text(2, prefix), u32(3, _LOGGED_BYTES))


_LOGGED_BYTES = 128
"""IPv6 and transport headers, and extension headers between them."""


def clear(word: int) -> Expression:
    """Set a register to zero."""
    data = nest(2, attribute(_VALUE, bytes(4)))
    return _expression("immediate", u32(1, _register(word)), data)


def start_trace(word: int) -> tuple[Expression, Expression]:
    """Let the kernel send an event for each further rule that applies to the packet.

    Args:
        word: a register that is overwritten.
    """
    one = nest(2, attribute(_VALUE, b"\1"))
    return (
        _expression("immediate", u32(1, _register(word)), one),
        _expression("meta", u32(2, Meta.NFTRACE), u32(3, _register(word))),
    )
