"""The expressions that rules consist of, each as its netlink attribute.

Registers are counted in words of four bytes, 0 to 15; a value longer than that fills the words
that follow. Expressions are encoded as the kernel dumps them, so that a rule read back can be
compared with the one sent (``attributes.holds``).
"""

from enum import IntEnum
from struct import Struct

from svcproxy.netlink.core.attributes import attribute, nest, text, u32, u64
from svcproxy.netlink.core.nf_tables.protocol import LIST_ELEMENT

Expression = bytes

_VALUE, _VERDICT = 1, 2


class Header(IntEnum):
    """Where a payload offset counts from."""

    NETWORK = 1
    TRANSPORT = 2


class Meta(IntEnum):
    """What is known of a packet besides its bytes; a name has 16 bytes."""

    MARK = 3
    IIFNAME = 6
    L4PROTO = 16


class Conntrack(IntEnum):
    """What connection tracking knows of a packet's flow."""

    STATE = 0
    STATUS = 2


STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1, 2, 4, 8
STATUS_DNAT = 0x20
"""IPS_DST_NAT: the flow's destination is translated."""


class Code(IntEnum):
    """Verdicts; ``DROP`` and ``ACCEPT`` end the base chain."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4


class Update(IntEnum):
    """What a packet does to a dynamic set."""

    REFRESH = 1
    DELETE = 2


def _expression(name: str, *attributes: bytes) -> Expression:
    return nest(LIST_ELEMENT, text(1, name), nest(2, *attributes))


def _register(word: int) -> int:
    # The kernel dumps words 0, 4, 8 and 12 as the 16-byte registers 1 to 4.
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def payload(header: Header, offset: int, length: int, to: int) -> Expression:
    """Load bytes of the packet."""
    return _expression(
        "payload", u32(1, _register(to)), u32(2, header), u32(3, offset), u32(4, length)
    )


def meta(key: Meta, to: int) -> Expression:
    """Load what is known of the packet."""
    return _expression("meta", u32(2, key), u32(1, _register(to)))


def set_mark(word: int) -> Expression:
    """Set the packet's mark."""
    return _expression("meta", u32(2, Meta.MARK), u32(3, _register(word)))


def conntrack(key: Conntrack, to: int) -> Expression:
    """Load what is known of the packet's flow."""
    return _expression("ct", u32(1, _register(to)), u32(2, key))


def address_type(offset: int, to: int) -> Expression:
    """Load how the routing table sees an address: 2 (``RTN_LOCAL``) if it is the node's own.

    ``offset`` is ``SOURCE`` or ``DESTINATION``.
    """
    return _expression("fib", u32(1, _register(to)), u32(2, 3), u32(3, offset))


SOURCE, DESTINATION = 1, 2
RTN_LOCAL = Struct("=I").pack(2)


def compare(word: int, value: bytes, *, equal: bool = True) -> Expression:
    """Go on with the rule only if a register holds (or does not hold) a value."""
    return _expression(
        "cmp", u32(1, _register(word)), u32(2, 0 if equal else 1), nest(3, attribute(_VALUE, value))
    )


def bitwise(word: int, mask: bytes, xor: bytes = b"") -> Expression:
    """Replace a register by ``register & mask ^ xor``."""
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
    """Go on only if a set holds the key in a register."""
    return _expression("lookup", text(1, name), u32(2, _register(word)))


def map_lookup(name: str, word: int, to: int) -> Expression:
    """Load a map's value for the key in a register; go on only if there is one."""
    return _expression("lookup", text(1, name), u32(2, _register(word)), u32(3, _register(to)))


def random_number(below: int, to: int) -> Expression:
    """Load a random number, evenly distributed."""
    return _expression("numgen", u32(1, _register(to)), u32(2, below), u32(3, 1), u32(4, 0))


def update(how: Update, name: str, key: int, data: int, seconds: int = 0) -> Expression:
    """Change a dynamic map; a new element takes the data, a known one only the time anew."""
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
    """Send the flow to the address and port in two registers."""
    return _expression(
        "nat", u32(1, 1), u32(2, family), u32(3, _register(address)), u32(5, _register(port))
    )


def masquerade() -> Expression:
    """Give the flow the outgoing interface's address as its source, and a random port.

    The flag is NF_NAT_RANGE_PROTO_RANDOM_FULLY: without it two CPUs may choose the same port at
    the same time, and one packet is lost.
    """
    return _expression("masq", u32(1, 0x10))


def reject(code: int) -> Expression:
    """Answer with an ICMP error; ``code`` is ``port unreachable`` in the packet's family."""
    return _expression("reject", u32(1, 0), attribute(2, bytes([code])))


def verdict(code: Code, chain: str = "") -> Expression:
    """End the rule with a verdict; ``chain`` is where to jump or go."""
    target = [text(2, chain)] if chain else []
    data = nest(2, nest(_VERDICT, u32(1, code & 0xFFFFFFFF), *target))
    return _expression("immediate", u32(1, 0), data)


def clear(word: int) -> Expression:
    """Load zero."""
    data = nest(2, attribute(_VALUE, bytes(4)))
    return _expression("immediate", u32(1, _register(word)), data)
