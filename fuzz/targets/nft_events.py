"""Events of nf_tables: after any event of another process, later events are still reported."""

from struct import pack

from fuzz.structure import Source
from svcproxy.netlink.core.attributes import attribute, text, u32
from svcproxy.netlink.core.nf_tables.events import EventParser, all_in_tables

_FAMILY = 2


def _message(kind: int, body: bytes, family: int = _FAMILY) -> bytes:
    whole = pack("!BBH", family, 0, 0) + body
    return pack("=IHHII", 16 + len(whole), 10 << 8 | kind, 0, 0, 77) + whole


def _transaction(table: str, process: bytes) -> bytes:
    """Return the events of a transaction that adds a rule to a table."""
    ended = u32(1, 5) + u32(2, 4242) + attribute(3, process + b"\0")
    return _message(6, text(1, table) + text(2, "services")) + _message(15, ended, 0)


GOOD = _transaction("svcproxy", b"nft")
SEEDS = (
    GOOD,
    _transaction("svcproxy", b'a"\n\x1b[2J\xff\xff\xff\xff'),
    _transaction("other", b"nft"),
    GOOD[:30],
    bytes(40),
    pack("=IHHII", 0, 10 << 8 | 6, 0, 0, 77) + bytes(8),
)


def check(data: bytes) -> None:
    """Parse datagrams of other processes, then a good one, which must be reported."""
    source = Source(data)
    changes = EventParser(all_in_tables(("svcproxy",)), [_FAMILY])
    for piece in source.pieces(source.rest(), 4):
        for change in changes.take(piece):
            assert len(change.process) <= 15
            assert change.process.isprintable()
            assert change.families <= {_FAMILY}
    (found,) = changes.take(GOOD)
    assert (found.process, found.pid, found.certain) == ("nft", 4242, True)
    assert found.families == {_FAMILY}
