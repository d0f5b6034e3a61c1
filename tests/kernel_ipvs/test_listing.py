"""``/proc/net/ip_vs`` says of virtual servers and weights what netlink says."""

from collections.abc import Callable
from functools import partial

from svcproxy.backends.ipvs.connection import Ipvs, read_listing
from svcproxy.backends.ipvs.operations import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
)
from svcproxy.backends.ipvs.procfile import fingerprint, parse
from svcproxy.backends.ipvs.values import (
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.model.names import IPFamily, Protocol
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
        opened = namespace.call(partial(Ipvs, family))
        key = VirtualServerKey(Protocol.TCP, host, 80)
        opened.execute([AddVirtualServer(key, RR), AddRealServer(key, RealServerKey(host, 1), 1)])
        opened.close()


def test_it_is_what_netlink_says(namespace: NetNS, ipvs: Ipvs, address: Address) -> None:
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
    found = parse(listing(namespace), ipvs.family)
    assert found.keys() == ipvs.virtual_servers().keys()
    assert len(found) == 4
    for key, servers in found.items():
        assert servers == {real: weight for real, (weight, _) in ipvs.real_servers(key).items()}
        assert servers


def test_the_fingerprint_changes_with_all_that_matters(
    namespace: NetNS, ipvs: Ipvs, address: Address
) -> None:
    foreign(namespace)
    key, real = VirtualServerKey(Protocol.TCP, address(1), 80), RealServerKey(address(2), 80)
    steps: list[ServerOperation] = [
        AddVirtualServer(key, RR),
        AddRealServer(key, real, 1),
        SetRealServer(key, real, 0),
        SetVirtualServer(key, VirtualServer("lc")),
        SetVirtualServer(key, VirtualServer("lc", ServerFlag.PERSISTENT, 60)),
        SetVirtualServer(key, VirtualServer("lc", ServerFlag.PERSISTENT, 61)),
        DeleteRealServer(key, real),
        DeleteVirtualServer(key),
    ]
    other = next(family for family in IPFamily if family is not ipvs.family)
    before = listing(namespace)
    seen = [fingerprint([before], ipvs.family)]
    for step in steps:
        assert ipvs.execute([step]) == []
        seen.append(fingerprint([listing(namespace)], ipvs.family))
        assert fingerprint([listing(namespace)], other) == fingerprint([before], other)
    assert len(set(seen)) == len(steps)
    assert seen[-1] == seen[0]


def test_another_namespaces_servers_are_not_read(
    namespace: NetNS, ipvs: Ipvs, address: Address
) -> None:
    ipvs.execute([AddVirtualServer(VirtualServerKey(Protocol.TCP, address(1), 80), RR)])
    assert parse(listing(namespace), ipvs.family)
    assert parse(read_listing(), ipvs.family) == {}
