"""Sets in the kernel, compared with the output of the ipset program."""

import errno
from collections.abc import Callable, Iterator

import pytest

from svcproxy.backends.ipvs.core.chains_and_sets import SUBSTITUTES, substitution
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.operations import (
    AddEntries,
    CreateSet,
    DestroySet,
    FlushSet,
    RemoveEntries,
    SetOperation,
    SwapSets,
)
from svcproxy.netlink.ipset import IpsetSocket
from testbed.netns import NetNS

Address = Callable[[int], str]
IP, IP_PORT = SetKind("hash:ip"), SetKind("hash:ip,port")
IP_PORT_IP, IP_PORT_NET = SetKind("hash:ip,port,ip"), SetKind("hash:ip,port,net")
PORTS = SetKind("bitmap:port", 0)
KINDS = (IP, IP_PORT, IP_PORT_IP, IP_PORT_NET, PORTS)
FULL = 4352


@pytest.fixture
def sets(namespace: NetNS, family: IPFamily) -> Iterator[IpsetSocket]:
    opened = namespace.call(lambda: IpsetSocket(family))
    yield opened
    opened.close()


def sample(kind: SetKind, address: Address) -> tuple[SetEntry, ...]:
    bits = 126 if ":" in address(1) else 30
    network = SetEntry(address(5), Protocol.TCP, 80, f"{address(4)}/{bits}")
    return {
        IP: (SetEntry(address(1)), SetEntry(address(2))),
        IP_PORT: tuple(SetEntry(address(1), protocol, 53) for protocol in Protocol),
        IP_PORT_IP: (SetEntry(address(1), Protocol.UDP, 53, address(2)),),
        IP_PORT_NET: (network, network._replace(other=f"{address(4)}/{bits + 2}")),
        PORTS: (SetEntry(port=80), SetEntry(port=65535), SetEntry(port=1)),
    }[kind]


def as_program_writes(kind: SetKind, entry: SetEntry) -> str:
    if kind is PORTS:
        return str(entry.port)
    port = f",{entry.protocol.keyword}:{entry.port}" if entry.protocol else ""
    other = entry.other.removesuffix("/32").removesuffix("/128")
    return entry.address + port + (f",{other}" if other else "")


def members(namespace: NetNS, name: str) -> set[str]:
    listed = namespace.run("ipset", "save", name).stdout.splitlines()
    return {line.split(maxsplit=2)[2] for line in listed if line.startswith("add ")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_entries_are_added_and_removed(
    namespace: NetNS, sets: IpsetSocket, address: Address, kind: SetKind
) -> None:
    entries = sample(kind, address)
    made: list[SetOperation] = [CreateSet("S", kind), AddEntries("S", kind, entries)]
    for _ in range(2):
        assert sets.execute(made) == []
        assert members(namespace, "S") == {as_program_writes(kind, entry) for entry in entries}
        assert sets.entries("S", kind) == set(entries)
        header = sets.headers()["S"]
        assert (header.kind, header.elements) == (kind, len(entries))
    for _ in range(2):
        assert sets.execute([RemoveEntries("S", kind, entries[:1])]) == []
        assert sets.entries("S", kind) == set(entries[1:])
    assert sets.execute([FlushSet("S")]) == []
    assert sets.entries("S", kind) == set()
    for _ in range(2):
        assert sets.execute([DestroySet("S")]) == []
        assert sets.headers() == {}
    assert sets.entries("S", kind) == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_sets_are_created_as_by_kube_proxy(
    namespace: NetNS, sets: IpsetSocket, family: IPFamily, kind: SetKind
) -> None:
    """kube-proxy and svcproxy both accept an existing set only if it is of the same kind."""
    inet = "inet" if family is IPFamily.IPV4 else "inet6"
    options = ["family", inet, "hashsize", "1024", "maxelem", "65536"]
    if kind is PORTS:
        options = ["range", "0-65535"]
    sets.execute([CreateSet("own", kind)])
    namespace.run("ipset", "create", "own", kind.type, *options, "-exist")
    namespace.run("ipset", "create", "other", kind.type, *options)
    assert sets.execute([CreateSet("other", kind)]) == []
    assert {name: header.kind for name, header in sets.headers().items()} == {
        "own": kind,
        "other": kind,
    }


@pytest.mark.parametrize(
    "made",
    [
        "hash:ip,port timeout 60",
        "hash:ip,port counters",
        "hash:ip,port comment",
        "hash:net",
        "hash:ip netmask 16",
        "bitmap:port range 0-1000",
    ],
)
def test_sets_of_other_kinds_are_recognized(
    namespace: NetNS, sets: IpsetSocket, family: IPFamily, made: str
) -> None:
    inet = ["family", "inet6"] if family is IPFamily.IPV6 and "bitmap" not in made else []
    namespace.run("ipset", "create", "S", *made.split(), *inet)
    assert sets.headers()["S"].kind is None
    failures = sets.execute([CreateSet("S", SetKind("hash:ip,port"))])
    assert [failure.number for failure in failures] == [errno.EEXIST]


def test_sets_of_the_other_family_are_recognized(
    namespace: NetNS, sets: IpsetSocket, family: IPFamily
) -> None:
    other = "inet" if family is IPFamily.IPV6 else "inet6"
    namespace.run("ipset", "create", "S", "hash:ip,port", "family", other)
    assert sets.headers()["S"].kind is None


def test_swapped_sets_keep_their_names(
    namespace: NetNS, sets: IpsetSocket, address: Address
) -> None:
    bigger = SetKind("hash:ip", 100_000)
    one, two = (SetEntry(address(1)),), (SetEntry(address(2)),)
    done: list[SetOperation] = [
        CreateSet("S", IP),
        AddEntries("S", IP, one),
        CreateSet("T", bigger),
        AddEntries("T", bigger, two),
        SwapSets("T", "S"),
        DestroySet("T"),
    ]
    assert sets.execute(done) == []
    assert sets.entries("S", bigger) == set(two)
    assert {name: h.kind for name, h in sets.headers().items()} == {"S": bigger}


@pytest.mark.parametrize("made", [("maxelem", "2"), ("timeout", "60"), ("comment",)])
def test_a_set_that_rules_refer_to_is_replaced(
    alone: NetNS, family: IPFamily, address: Address, made: tuple[str, ...]
) -> None:
    sets = alone.call(lambda: IpsetSocket(family))
    name, number = "KUBE-CLUSTER-IP", 100
    inet = "inet6" if family is IPFamily.IPV6 else "inet"
    alone.run("ipset", "create", name, "hash:ip,port", "family", inet, *made)
    tool = "ip6tables-legacy" if family is IPFamily.IPV6 else "iptables-legacy"
    match = ("-m", "set", "--match-set", name, "dst,dst", "-j", "ACCEPT")
    alone.run(tool, "-A", "OUTPUT", *match)
    entries, kind = numbered(address, 1, number), SetKind("hash:ip,port")
    for _ in range(2):  # the second time, a temporary set of a killed process exists
        failures = sets.execute(list(substitution(name, kind, entries, family)))
        assert failures == []
        sets.execute([CreateSet(SUBSTITUTES[family], SetKind("hash:ip"))])
    assert sets.headers()[name][:3] == (kind, len(entries), 1)
    assert sets.entries(name, kind) == set(entries)
    sets.close()


def numbered(address: Address, first: int, end: int) -> tuple[SetEntry, ...]:
    return tuple(SetEntry(address(n), Protocol.TCP, 80) for n in range(first, end))


def test_entries_that_do_not_fit_are_returned(sets: IpsetSocket, address: Address) -> None:
    maximum = 4096
    kind = SetKind("hash:ip,port", maximum)
    entries = numbered(address, 1, maximum + 1001)
    failures = sets.execute([CreateSet("S", kind), AddEntries("S", kind, entries)])
    assert {failure.number for failure in failures} == {FULL}
    assert "full" in failures[0].reason
    missing = {op.entries for op, *_ in failures if isinstance(op, AddEntries)}
    held = sets.entries("S", kind)
    assert {(entry,) for entry in entries} - {(entry,) for entry in held} == missing
    # The kernel counts entries by regions of the hash, so the limit is not exact.
    assert abs(len(held) - maximum) < 500


def test_a_refused_entry_stops_no_other(sets: IpsetSocket, address: Address) -> None:
    good = numbered(address, 1, 2500)
    bad = SetEntry(address(7), Protocol.TCP, 80, f"{address(0)}/0")
    many = tuple(entry._replace(other=f"{entry.address}") for entry in good)
    made = AddEntries("S", IP_PORT_NET, (*many[:1500], bad, *many[1500:], bad))
    failures = sets.execute([CreateSet("S", IP_PORT_NET), made])
    assert [f.operation for f in failures] == [AddEntries("S", IP_PORT_NET, (bad,))] * 2
    assert "prefix length" in failures[0].reason
    assert sets.headers()["S"].elements == len(many)


def test_other_failures_are_explained(alone: NetNS, family: IPFamily, address: Address) -> None:
    sets = alone.call(lambda: IpsetSocket(family))
    alone.run(
        "ipset",
        "create",
        "used",
        "hash:ip",
        *(["family", "inet6"] if family is IPFamily.IPV6 else []),
    )
    tool = "ip6tables-legacy" if family is IPFamily.IPV6 else "iptables-legacy"
    alone.run(*(tool, "-A", "INPUT", "-m", "set", "--match-set", "used", "src", "-j", "ACCEPT"))
    absent = AddEntries("absent", IP, (SetEntry(address(1)), SetEntry(address(2))))
    operations: list[SetOperation] = [
        DestroySet("used"),
        absent,
        SwapSets("used", "absent"),
        FlushSet("absent"),
        CreateSet("odd", SetKind("hash:ip,port")),
        SwapSets("used", "odd"),
    ]
    failures = sets.execute(operations)
    assert [f.operation for f in failures] == [op for op in operations if op[0] != "odd"]
    reasons = [f.reason for f in failures]
    assert reasons[0] == "a rule refers to it"
    assert reasons[1] == "No such file or directory"
    assert "second name" in reasons[2]
    assert "different types" in reasons[4]
    assert "ipset destroy odd" in reasons[4]
    assert sets.headers()["used"].references == 1
    sets.close()
    sets.close()


def test_missing_types_are_returned(sets: IpsetSocket) -> None:
    known = [kind.type for kind in KINDS]
    assert sets.missing_types([*known, "hash:nosuch"]) == ["hash:nosuch"]


def test_ten_thousand_entries(
    sets: IpsetSocket, address: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = numbered(address, 1, 10_001)
    sets.execute([CreateSet("S", IP_PORT)])
    sent = sets.sent
    assert sets.execute([AddEntries("S", IP_PORT, entries)]) == []
    assert sets.sent - sent <= 20
    sent = sets.sent
    assert sets.headers()["S"].elements == len(entries)
    assert sets.sent - sent == 1
