"""Dumps of nf_tables: any table content leads to a plan, never to a crash.

The messages that create the table have the same bodies as a dump of it. One or several of them are
replaced or damaged; the plan must repair the table, and apart from that change nothing.
"""

from contextlib import suppress
from struct import error

from fuzz.structure import Source
from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.table_objects import all_sets
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.attributes import collect, string
from svcproxy.netlink.core.messages import error_number, extended_error, split
from svcproxy.netlink.core.nf_tables import dump
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.protocol import NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.core.nf_tables.transaction import Message, explain, messages
from svcproxy.netlink.errors import MalformedError

_SETTINGS = Settings(family=IPFamily.IPV4)


def _port(number: int) -> ServicePort:
    frontends = (
        Frontend(FrontendKind.CLUSTER_IP, f"10.96.0.{number}", 80, False, Verdict.FORWARD),  # noqa: FBT003
        Frontend(FrontendKind.LOAD_BALANCER, f"203.0.113.{number}", 80, True, Verdict.FORWARD),  # noqa: FBT003
        Frontend(FrontendKind.NODE_PORT, "", 30000 + number, True, Verdict.FORWARD),  # noqa: FBT003
    )
    ends = tuple(Endpoint(f"10.244.0.{number * 10 + n}", 8080, n == 0) for n in range(number))
    return ServicePort(
        ServicePortName("ns", f"s{number}", "http", Protocol.TCP),
        frontends,
        ends,
        ends[:1],
        affinity_seconds=100 * (number % 2),
        source_ranges=("198.51.100.0/24",),
    )


_PORTS = {port.name: port for port in map(_port, range(1, 4))}
_DESIRED = Desired(_PORTS, _SETTINGS)
_PLAN = Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, TableDump())
_BODIES = [(m.kind, m.body) for m in messages(_PLAN, TABLE)]
SEEDS = (
    *(bytes([number]) + body[:40] for number, (_, body) in list(enumerate(_BODIES))[::9]),
    b"",
    b"\xff" * 60,
    b"\x01\x00\x00\x80\x00\x03\x04",
)


def _observed(bodies: list[tuple[int, bytes]]) -> TableDump:
    found = TableDump(generation=7, handle=1)
    for kind, body in bodies:
        if kind == NEW_CHAIN:
            dump.add_chain(found, body, TABLE)
        elif kind == NEW_RULE:
            dump.add_rule(found, body, TABLE)
        elif kind == NEW_SET:
            dump.add_set(found, body, TABLE)
    for kind, body in bodies:
        if kind == NEW_ELEMENT:
            name = string(collect(body).get(2, b""))
            length = dump.key_length(found.sets.get(name, b""))
            dump.element_count(found.sets.get(name, b""))
            found.elements.setdefault(name, {}).update(dump.elements([body], length))
    return found


assert not Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, _observed(_BODIES))


def _damaged(source: Source) -> list[tuple[int, bytes]]:
    bodies = list(_BODIES)
    for _ in range(1 + source.number(3)):
        at = source.number(len(bodies))
        kind, body = bodies[at]
        start = source.number(len(body) + 1)
        end = start + source.number(len(body) - start + 1)
        bodies[at] = kind, body[:start] + source.take(source.number(40)) + body[end:]
    return bodies


def check(data: bytes) -> None:
    """Parse a damaged table and plan its repair; parse raw bytes as datagrams and errors."""
    for raw in (data, b"\xfe\xff\xff\xff" + bytes(16) + data):
        with suppress(MalformedError):
            for kind, flags, _, begin, end in split(raw):
                error_number(raw, begin, end)
                body = raw[begin:end]
                extended_error(body, flags | 0x200)
                explain(Message(kind & 0xFF, 0, body, "it"), len(data), all_sets(_SETTINGS, ()))
        for parse in (dump.generation, dump.table_handle, dump.table_flags, dump.table_owner):
            with suppress(MalformedError):
                parse(raw)
    try:
        observed = _observed(_damaged(Source(data)))
    except MalformedError:
        return
    except error as crash:  # pragma: no cover - a finding
        raise AssertionError("struct.error") from crash
    plan = Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, observed)
    assert list(messages(plan, TABLE)) or not plan
