"""Answers and errors of connection tracking that the test machine's kernel does not return."""

import errno
import struct
from collections.abc import Iterator

import pytest

from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import MAX_MESSAGES
from svcproxy.netlink.core import conntrack
from svcproxy.netlink.core import messages as wire
from svcproxy.netlink.core.conntrack import Destination, Flow
from svcproxy.netlink.errors import BufferOverrunError, NetlinkError, TimedOutError
from tests.unit.conntrack.ports import flow, target

QUERY = Destination(17, target("10.96.0.10:53").address, 53)
Answer = bytes | NetlinkError
CLIENT = target("192.168.50.100:40000")


class FakeSocket:
    """Answers each read with the next item of the script."""

    def __init__(self, script: list[Answer], sent: list[bytes]) -> None:
        self.script = script
        self.sent = sent
        self.buffer = memoryview(bytearray(65536))

    def close(self) -> None:
        self.script = []

    def replace_after(self, _error: NetlinkError) -> None:
        self.script = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def receive(self) -> bytes:
        answer = self.script.pop(0)
        if isinstance(answer, NetlinkError):
            raise answer
        return answer

    def receive_size(self) -> int:
        data = self.receive()
        self.buffer[: len(data)] = data
        return len(data)


class Kernel:
    """The scripts of the next sockets, and the data sent to them."""

    def __init__(self) -> None:
        self.scripts: list[list[Answer]] = []
        self.sent: list[bytes] = []
        self.refusal: NetlinkError | None = None

    def open(self, _protocol: int, **_options: object) -> FakeSocket:
        if self.refusal:
            raise self.refusal
        return FakeSocket(self.scripts.pop(0), self.sent)

    def filtered(self) -> list[bool]:
        """Whether each request has a filter."""
        return [len(request) > 20 for request in self.sent]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr("svcproxy.netlink.client.NetlinkSocket", made.open)
    yield made
    assert made.scripts == []


def message(kind: int, body: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def code(kind: int, number: int, sequence: int = 1) -> bytes:
    return message(kind, struct.pack("=i", -number), sequence=sequence)


def entry(destination: str, source: str, flags: int = 0) -> bytes:
    made = flow(destination, source)
    vip = target(destination)
    tuples = conntrack.conntrack_tuple(conntrack.CTA_TUPLE_ORIG, 17, CLIENT, vip)
    tuples += conntrack.conntrack_tuple(conntrack.CTA_TUPLE_REPLY, 17, made.source, CLIENT)
    return message(conntrack.CT_NEW, struct.pack("=BBH", 2, 0, 0) + tuples, flags)


DONE = code(wire.DONE, 0)
HIT = entry("10.96.0.10:53", "10.244.0.1:53")


def found(kernel: Kernel, *scripts: list[Answer]) -> tuple[Table, list[Flow]]:
    kernel.scripts = list(scripts)
    made = Table(IPFamily.IPV4)
    return made, made.find(QUERY, lambda _: True)


def test_flows_arrive_in_several_reads(kernel: Kernel) -> None:
    made, flows = found(kernel, [HIT, HIT + DONE])
    assert len(flows) == 2
    assert made.filtering


def test_only_what_is_wanted_is_kept(kernel: Kernel) -> None:
    kernel.scripts = [[HIT + DONE]]
    assert Table(IPFamily.IPV4).find(QUERY, lambda _: False) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_that_refuses_filters_gets_requests_without(kernel: Kernel, number: int) -> None:
    made, flows = found(kernel, [code(wire.ERROR, number)], [HIT + DONE])
    assert len(flows) == 1
    assert kernel.filtered() == [True, False]
    assert not made.filtering


def test_a_kernel_that_ignores_filters_is_noticed(kernel: Kernel) -> None:
    made, flows = found(kernel, [HIT + entry("10.96.0.10:54", "10.244.0.1:53") + DONE])
    assert len(flows) == 2  # the caller's condition decides, not the kernel
    assert not made.filtering


@pytest.mark.parametrize(
    "bad",
    [
        [HIT + entry("10.96.0.10:53", "10.244.0.1:53", wire.FLAG_INTERRUPTED) + DONE],
        [HIT, BufferOverrunError()],
        [HIT, message(wire.DONE, struct.pack("=i", 0), wire.FLAG_INTERRUPTED)],
    ],
    ids=["interrupted", "overrun", "interrupted at the end"],
)
def test_an_incomplete_dump_is_repeated(kernel: Kernel, bad: list[Answer]) -> None:
    _, flows = found(kernel, bad, [HIT + DONE])
    assert len(flows) == 1
    again: list[list[Answer]] = [[HIT, BufferOverrunError()] for _ in range(5)]
    with pytest.raises(ConntrackError, match="interrupted 5 times"):
        found(kernel, *again)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (code(wire.ERROR, errno.EPERM), r"not permitted \(CAP_NET_ADMIN is needed\)"),
        (code(wire.DONE, errno.ENOMEM), "cannot list connection tracking entries"),
        (TimedOutError(), "no answer within 30 s"),
    ],
)
def test_errors_of_a_dump_name_the_reason(kernel: Kernel, answer: Answer, text: str) -> None:
    with pytest.raises(ConntrackError, match=text):
        found(kernel, [answer])


def test_a_missing_module_is_named(kernel: Kernel) -> None:
    invalid = code(wire.ERROR, errno.EINVAL)
    with pytest.raises(ConntrackError, match="nf_conntrack_netlink"):
        found(kernel, [invalid], [invalid])
    kernel.refusal = NetlinkError(errno.EPROTONOSUPPORT)
    with pytest.raises(ConntrackError, match="no netfilter netlink"):
        found(kernel)
    with pytest.raises(ConntrackError, match="no netfilter netlink"):
        Table(IPFamily.IPV4).delete([flow("10.96.0.10:53", "10.244.0.1:53")])
    with pytest.raises(ConntrackError, match="look up a route"):
        Table(IPFamily.IPV4).is_local(QUERY.address)


def test_deletions_are_sent_in_batches_and_missing_entries_are_fine(kernel: Kernel) -> None:
    missing = code(wire.ERROR, errno.ENOENT, MAX_MESSAGES - 1)
    acks = [code(wire.ERROR, 0, sequence) for sequence in (MAX_MESSAGES, MAX_MESSAGES + 50)]
    kernel.scripts = [[missing, *acks]]
    flows = [flow("10.96.0.10:53", "10.244.0.1:53")] * (MAX_MESSAGES + 50)
    assert Table(IPFamily.IPV4).delete(flows) == MAX_MESSAGES + 49
    assert len(kernel.sent) == 2


def test_an_entry_that_cannot_be_deleted_does_not_save_the_others(kernel: Kernel) -> None:
    kernel.scripts = [[code(wire.ERROR, errno.EBUSY, 1), code(wire.ERROR, 0, 2)]]
    with pytest.raises(ConntrackError, match=r"cannot delete .*busy"):
        Table(IPFamily.IPV4).delete([flow("10.96.0.10:53", "10.244.0.1:53")] * 2)
    assert kernel.scripts == []
    assert len(list(wire.messages(kernel.sent[0]))) == 2
