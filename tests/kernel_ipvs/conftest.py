"""Network namespaces for tests that need a kernel with IPVS; the tests run in a guest."""

import itertools
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.operations import DestroySet
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.netlink.ipvs import IpvsSocket
from svcproxy.netlink.rtnetlink import RouteSocket
from testbed import netns
from testbed.netns import NetNS

_NUMBERS = itertools.count(1)
_FLUSH = bytes((17, 1, 0, 0))  # IPVS_CMD_FLUSH


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("uml")


def _new() -> NetNS:
    made = NetNS(f"ipvs{next(_NUMBERS)}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], made.name)
    return made


@pytest.fixture
def alone() -> Iterator[NetNS]:
    """A namespace for one test, with its loopback interface up."""
    made = _new()
    yield made
    netns.remove([made.name])


@pytest.fixture(scope="session")
def _shared() -> Iterator[NetNS]:
    made = _new()
    yield made
    netns.remove([made.name])


@pytest.fixture
def namespace(_shared: NetNS) -> Iterator[NetNS]:
    """A namespace without virtual servers, sets and ``kube-ipvs0``; other objects are kept.

    Starting programs takes long in the guest, so the namespace is created once and emptied by
    netlink messages.
    """
    yield _shared
    _shared.call(_empty)


def _empty() -> None:
    ipvs, sets, links = (
        IpvsSocket(IPFamily.IPV4),
        IpsetSocket(IPFamily.IPV4),
        RouteSocket(IPFamily.IPV4, DUMMY_INTERFACE),
    )
    assert ipvs._client.execute([NetlinkRequest(ipvs._kind, 0, _FLUSH)]) == []
    assert sets.execute([DestroySet(name) for name in sets.headers()]) == []
    links.remove()
    for opened in (ipvs, sets, links):
        opened.close()


@pytest.fixture(params=IPFamily)
def family(request: pytest.FixtureRequest) -> IPFamily:
    chosen: IPFamily = request.param
    return chosen


@pytest.fixture
def ipvs(namespace: NetNS, family: IPFamily) -> Iterator[IpvsSocket]:
    """IPVS of the namespace; fails if the kernel has no IPVS."""
    opened = namespace.call(lambda: IpvsSocket(family))
    yield opened
    opened.close()


Address = Callable[[int], str]


@pytest.fixture
def address(family: IPFamily) -> Address:
    """Addresses of the family by number."""
    base = ip_address("10.0.0.0" if family is IPFamily.IPV4 else "fd00:10::")
    return lambda number: str(base + number)
