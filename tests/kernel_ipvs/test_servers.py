"""Virtual servers and real servers in the kernel, compared with the output of ipvsadm."""

import errno
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import ipvs as messages
from svcproxy.netlink.core.ipvs import Timeouts
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.messages import FLAG_ACK, FLAG_DUMP, encode
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
)
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.ipvs import IpvsSocket
from testbed.netns import NetNS

Address = Callable[[int], str]
IDLE = Connections(0, 0, 0)
RR = VirtualServer("rr")


def listed(namespace: NetNS) -> list[str]:
    """The sorted output of ``ipvsadm --save``."""
    return sorted(namespace.run("ipvsadm", "-Sn").stdout.splitlines())


def bracketed(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def test_every_operation_has_its_effect(
    namespace: NetNS, ipvs: IpvsSocket, address: Address
) -> None:
    key = VirtualServerKey(Protocol.TCP, address(1), 80)
    one, two = RealServerKey(address(2), 8080), RealServerKey(address(3), 8081)
    made: list[ServerOperation] = [
        AddVirtualServer(key, RR),
        AddRealServer(key, one, 1),
        AddRealServer(key, two, 5),
    ]
    assert ipvs.execute(made) == []
    at = bracketed(*key[1:])
    assert listed(namespace) == [
        f"-A -t {at} -s rr",
        f"-a -t {at} -r {bracketed(*one)} -m -w 1",
        f"-a -t {at} -r {bracketed(*two)} -m -w 5",
    ]
    sticky = VirtualServer("mh", ServerFlag.PERSISTENT | ServerFlag.SCHEDULER_1, 10800)
    changed: list[ServerOperation] = [
        SetVirtualServer(key, sticky),
        SetRealServer(key, one, 0),
        DeleteRealServer(key, two),
    ]
    assert ipvs.execute(changed) == []
    assert listed(namespace) == [
        f"-A -t {at} -s mh -p 10800 -b mh-fallback",
        f"-a -t {at} -r {bracketed(*one)} -m -w 0",
    ]
    assert ipvs.virtual_servers() == {key: sticky}
    assert ipvs.real_servers(key) == {one: (0, IDLE)}
    assert ipvs.execute([DeleteVirtualServer(key)]) == []
    assert listed(namespace) == []
    assert ipvs.real_servers(key) == {}


def test_protocols(namespace: NetNS, ipvs: IpvsSocket, address: Address) -> None:
    keys = [VirtualServerKey(protocol, address(1), 53) for protocol in Protocol]
    assert ipvs.execute([AddVirtualServer(key, RR) for key in keys]) == []
    at = bracketed(address(1), 53)
    options = ("--sctp-service", "-t", "-u")
    assert listed(namespace) == [f"-A {option} {at} -s rr" for option in options]
    assert ipvs.virtual_servers().keys() == set(keys)


@pytest.mark.parametrize(
    "scheduler",
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf"],
)
def test_schedulers(ipvs: IpvsSocket, address: Address, scheduler: str) -> None:
    key = VirtualServerKey(Protocol.TCP, address(1), 80)
    assert ipvs.execute([AddVirtualServer(key, VirtualServer(scheduler))]) == []
    assert ipvs.virtual_servers()[key].scheduler == scheduler


def test_operations_can_be_repeated(namespace: NetNS, ipvs: IpvsSocket, address: Address) -> None:
    key, real = VirtualServerKey(Protocol.UDP, address(1), 53), RealServerKey(address(2), 53)
    ipvs.execute([AddVirtualServer(key, VirtualServer("wlc")), AddRealServer(key, real, 7)])
    wanted: list[ServerOperation] = [AddVirtualServer(key, RR), AddRealServer(key, real, 1)]
    for _ in range(2):
        assert ipvs.execute(wanted) == []
        assert listed(namespace)[0].endswith(" -s rr")
        assert ipvs.real_servers(key) == {real: (1, IDLE)}
    gone: list[ServerOperation] = [DeleteRealServer(key, real), DeleteVirtualServer(key)]
    for _ in range(2):
        assert ipvs.execute(gone) == []
        assert listed(namespace) == []
    assert ipvs.execute([DeleteRealServer(key, real)]) == []


def test_failures_name_their_operations_and_stop_no_other(
    ipvs: IpvsSocket, address: Address
) -> None:
    keys = [VirtualServerKey(Protocol.TCP, address(n), 80) for n in range(1, 1001)]
    real = RealServerKey(address(5000), 80)
    operations: list[ServerOperation] = []
    for number, key in enumerate(keys):
        scheduler = "nosuch" if number % 100 == 7 else "rr"
        operations.append(AddVirtualServer(key, VirtualServer(scheduler)))
        operations.append(AddRealServer(key, real, 1))
    failures = ipvs.execute(operations)
    bad = keys[7::100]
    assert [f.operation[0] for f in failures] == [key for key in bad for _ in range(2)]
    assert [f.number for f in failures] == [errno.ENOENT, errno.ESRCH] * len(bad)
    assert "ip_vs_nosuch" in failures[0].reason
    assert "no such virtual server" in failures[1].reason
    assert ipvs.virtual_servers().keys() == set(keys) - set(bad)
    assert all(real in ipvs.real_servers(key) for key in keys[:3])


def test_changing_a_missing_server_fails(ipvs: IpvsSocket, address: Address) -> None:
    key, real = VirtualServerKey(Protocol.TCP, address(1), 80), RealServerKey(address(2), 80)
    operations: list[ServerOperation] = [SetVirtualServer(key, RR), SetRealServer(key, real, 1)]
    assert [f.number for f in ipvs.execute(operations)] == [errno.ESRCH, errno.ESRCH]
    ipvs.execute([AddVirtualServer(key, RR)])
    failed = ipvs.execute([SetRealServer(key, real, 1)])
    assert [(f.number, f.reason) for f in failed] == [
        (errno.ENOENT, "there is no such real server")
    ]


def test_thousands_of_failures_do_not_overflow_the_socket(
    ipvs: IpvsSocket, address: Address
) -> None:
    key = VirtualServerKey(Protocol.TCP, address(1), 80)
    operations = [SetRealServer(key, RealServerKey(address(n), 80), 1) for n in range(1, 3001)]
    failures = ipvs.execute(operations)
    assert [f.operation for f in failures] == operations


def test_servers_of_other_programs_are_listed(namespace: NetNS, address: Address) -> None:
    namespace.run("ipvsadm", "-A", "-f", "7", "-s", "rr")
    namespace.run("ipvsadm", "-A", "-t", "192.0.2.1:80", "-s", "wlc", "-p", "60")
    namespace.run("ipvsadm", "-A", "-t", "[2001:db8::1]:80", "-s", "sh", "-b", "sh-port")
    for family, expected in (
        (IPFamily.IPV4, ("192.0.2.1", VirtualServer("wlc", ServerFlag.PERSISTENT, 60))),
        (IPFamily.IPV6, ("2001:db8::1", VirtualServer("sh", ServerFlag.SCHEDULER_2))),
    ):
        opened = namespace.call(partial(IpvsSocket, family))
        seen = {k.address: v for k, v in opened.virtual_servers().items()}
        opened.close()
        assert seen == dict([expected])


def test_timeouts(namespace: NetNS, ipvs: IpvsSocket) -> None:
    before = ipvs.timeouts()
    ipvs.set_timeouts(Timeouts(0, 77, 0))
    assert ipvs.timeouts() == before._replace(tcp_fin=77)
    shown = namespace.run("ipvsadm", "-l", "--timeout").stdout
    assert shown.split(":")[-1].split() == [str(value) for value in ipvs.timeouts()]
    with pytest.raises(NetlinkError, match="timeouts"):
        ipvs.set_timeouts(Timeouts(1 << 31, 0, 0))
    ipvs.set_timeouts(before)


def test_version(ipvs: IpvsSocket) -> None:
    version, connections = ipvs.info()
    assert version.split(".")[0] == "1"
    assert connections >= 1 << 8


def test_namespaces_do_not_share(namespace: NetNS, ipvs: IpvsSocket, address: Address) -> None:
    ipvs.execute([AddVirtualServer(VirtualServerKey(Protocol.TCP, address(1), 80), RR)])
    outside = IpvsSocket(ipvs.family)
    assert outside.virtual_servers() == {}
    outside.close()
    assert len(ipvs.virtual_servers()) == 1


def load(ipvs: IpvsSocket, first: int, virtual: int, real: int) -> list[ServerOperation]:
    """Return operations that add virtual servers with a number of real servers each."""
    v4 = ipvs.family is IPFamily.IPV4
    prefix = "10.{}.{}.{}" if v4 else "fd00:{:x}::{:x}:{:x}"

    def at(block: int, number: int) -> str:
        return prefix.format(block, number >> 8, number & 255)

    made: list[ServerOperation] = []
    for number in range(first, first + virtual):
        key = VirtualServerKey(Protocol.TCP, at(96, number), 80)
        made.append(AddVirtualServer(key, RR))
        made += (
            AddRealServer(key, RealServerKey(at(100 + n, number), 8080), 1) for n in range(real)
        )
    return made


def test_two_families_in_two_threads(alone: NetNS) -> None:
    """Their answers never mix, and each thread lists all servers of its family."""
    barrier = threading.Barrier(2)

    def work(family: IPFamily) -> set[VirtualServerKey]:
        opened = IpvsSocket(family)
        barrier.wait()
        for start in range(1, 500, 50):
            assert opened.execute(load(opened, start, 50, 2)) == []
            assert opened.execute(load(opened, start, 50, 2)) == []
            assert len(opened.virtual_servers()) == start + 49
        found = set(opened.virtual_servers())
        opened.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda f: alone.call(lambda: work(f)), IPFamily))
    assert [len(found) for found in both] == [500, 500]
    assert all(":" in key.address for key in both[1])


def test_thousands_of_services(
    alone: NetNS, family: IPFamily, capsys: pytest.CaptureFixture[str]
) -> None:
    ipvs = alone.call(lambda: IpvsSocket(family))
    services = 10_000 if family is IPFamily.IPV4 else 2_000
    operations = load(ipvs, 1, services, 5)
    sent = ipvs.sent
    start = time.perf_counter()
    assert ipvs.execute(operations) == []
    loaded = time.perf_counter() - start
    cost = ipvs.sent - sent
    assert cost == len(operations)
    start = time.perf_counter()
    found = ipvs.virtual_servers()
    dumped = time.perf_counter() - start
    assert len(found) == services
    one = next(op for op in reversed(operations) if isinstance(op, AddRealServer))
    sent = ipvs.sent
    start = time.perf_counter()
    assert ipvs.execute([DeleteRealServer(one.virtual, one.key), one]) == []
    assert len(ipvs.real_servers(one.virtual)) == 5
    changed = time.perf_counter() - start
    assert ipvs.sent - sent == 3, "the cost of a change does not depend on the number of servers"
    ipvs.close()
    with capsys.disabled():
        sys.stderr.write(
            f"\n{ipvs.family}: {cost} messages in {loaded:.2f} s, "
            f"{len(found)} virtual servers listed in {dumped:.2f} s, "
            f"a real server replaced and listed in {changed * 1000:.2f} ms\n"
        )


def test_late_answers_are_not_taken_for_those_of_other_requests(
    ipvs: IpvsSocket, address: Address
) -> None:
    key, real = VirtualServerKey(Protocol.TCP, address(1), 80), RealServerKey(address(2), 80)
    client = ipvs._client
    abandoned = messages.operation_request(ipvs._kind, SetRealServer(key, real, 1))
    requests: list[Callable[[], object]] = [
        lambda: ipvs.execute([AddVirtualServer(key, RR)]),
        lambda: list(ipvs.virtual_servers())[1:],
        lambda: list(ipvs.real_servers(key)),
        lambda: ipvs.timeouts()[3:],
    ]
    for request in requests:
        for flags in (FLAG_ACK, FLAG_DUMP):
            client.socket.send(encode(abandoned, client._reserve(1), flags))
        assert not request()
