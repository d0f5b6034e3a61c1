"""``/proc/net/ip_vs`` lists the same virtual servers and weights as netlink."""

from collections.abc import Callable
from functools import partial

from svcproxy.backends.ipvs.kernel import ticks_per_second
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.ipvs_listing import (
    LINES,
    Line,
    format_key,
    format_properties,
    format_real_server,
    parse_listing,
)
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import AddRealServer, AddVirtualServer, ServerOperation
from svcproxy.netlink.ipvs import IpvsSocket, read_listing
from testbed.netns import NetNS

Address = Callable[[int], str]
RR = VirtualServer("rr")


def listing(namespace: NetNS) -> bytes:
    return namespace.call(read_listing)


def foreign(namespace: NetNS) -> None:
    """Virtual servers of other kinds and of the other family."""
    for options in (
        ("-A", "-f", "7", "-s", "rr"),
        ("-a", "-f", "7", "-r", "192.0.2.9:80", "-m"),
        ("-A", "-f", "8", "-6", "-s", "rr"),
        ("-a", "-f", "8", "-6", "-r", "[2001:db8::9]:80", "-m"),
    ):
        namespace.run("ipvsadm", *options)
    for family, host in ((IPFamily.IPV4, "192.0.2.1"), (IPFamily.IPV6, "2001:db8::1")):
        opened = namespace.call(partial(IpvsSocket, family))
        key = VirtualServerKey(Protocol.TCP, host, 80)
        opened.execute([AddVirtualServer(key, RR), AddRealServer(key, RealServerKey(host, 1), 1)])
        opened.close()


def test_the_listing_equals_the_netlink_dumps(
    namespace: NetNS, ipvs: IpvsSocket, address: Address
) -> None:
    foreign(namespace)
    made: list[ServerOperation] = []
    for number, protocol in enumerate(Protocol, 1):
        key = VirtualServerKey(protocol, address(number << 16), 65535)
        sticky = VirtualServer("lc", ServerFlag.PERSISTENT, 10800)
        made.append(AddVirtualServer(key, sticky if number == 2 else RR))
        made += (
            AddRealServer(key, RealServerKey(address(1000 + n), 8080 + n), n * 70_000)
            for n in range(number)
        )
    assert ipvs.execute(made) == []
    found = parse_listing(listing(namespace), ipvs.family)
    assert found.keys() == ipvs.virtual_servers().keys()
    assert len(found) == 4
    for key, servers in found.items():
        assert servers == {real: weight for real, (weight, _) in ipvs.real_servers(key).items()}
        assert servers


def test_lines_are_formatted_as_the_audit_expects(
    namespace: NetNS, ipvs: IpvsSocket, address: Address
) -> None:
    """Otherwise the audit would parse every virtual server, which takes long."""
    foreign(namespace)
    real = RealServerKey(address(2), 80)
    expected: list[Line] = []
    for number, protocol in enumerate(Protocol, 1):
        for port, server in enumerate(
            (RR, VirtualServer("lc", ServerFlag.PERSISTENT, 10799), VirtualServer("sh", 0x18)), 1
        ):
            key = VirtualServerKey(protocol, address(number), port)
            ipvs.execute([AddVirtualServer(key, server), AddRealServer(key, real, 1)])
            assert ipvs.virtual_server(key) == server
            form = format_properties(server, ipvs.family, ticks_per_second())
            expected += [(b"", format_key(key), form), (format_real_server(real, 1), b"", b"")]
    found = LINES.findall(b"".join(namespace.call(lambda: list(ipvs.listing()))))
    for line, next_line in zip(expected[::2], expected[1::2], strict=True):
        position = found.index(line)
        assert found[position + 1] == next_line
    assert ipvs.virtual_server(VirtualServerKey(Protocol.TCP, address(9), 9)) is None


def test_the_listing_can_be_read_while_servers_are_added(
    namespace: NetNS, ipvs: IpvsSocket, address: Address
) -> None:
    """It contains the servers that existed before, and each line is complete."""
    before = [VirtualServerKey(Protocol.TCP, address(number), 80) for number in range(500)]
    real = RealServerKey(address(1 << 16), 80)
    for key in before:
        ipvs.execute([AddVirtualServer(key, RR), AddRealServer(key, real, 1)])
    chunks = []

    def read() -> None:
        for chunk in ipvs.listing():
            chunks.append(chunk)
            if len(chunks) < 5:  # each addition may lengthen the file by a chunk
                key = VirtualServerKey(Protocol.TCP, address(1000 + len(chunks)), 80)
                assert ipvs.execute([AddVirtualServer(key, RR)]) == []

    namespace.call(read)
    assert len(chunks) > 5
    assert parse_listing(b"".join(chunks), ipvs.family).keys() >= set(before)


def test_servers_of_other_namespaces_are_not_listed(
    namespace: NetNS, ipvs: IpvsSocket, address: Address
) -> None:
    ipvs.execute([AddVirtualServer(VirtualServerKey(Protocol.TCP, address(1), 80), RR)])
    assert parse_listing(listing(namespace), ipvs.family)
    assert parse_listing(read_listing(), ipvs.family) == {}
