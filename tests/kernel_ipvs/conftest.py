"""A network namespace of its own for each test, on a kernel that has IPVS: they run in a guest."""

import itertools
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from svcproxy.backends.ipvs.connection import Ipvs
from svcproxy.model.names import IPFamily
from testbed import netns
from testbed.netns import NetNS

_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("uml")


@pytest.fixture
def namespace() -> Iterator[NetNS]:
    """An empty namespace with its loopback interface up."""
    made = NetNS(f"ipvs{next(_NUMBERS)}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], made.name)
    yield made
    netns.remove([made.name])


@pytest.fixture(params=IPFamily)
def family(request: pytest.FixtureRequest) -> IPFamily:
    chosen: IPFamily = request.param
    return chosen


@pytest.fixture
def ipvs(namespace: NetNS, family: IPFamily) -> Iterator[Ipvs]:
    """IPVS of the namespace; it fails where the kernel has none."""
    opened = namespace.call(lambda: Ipvs(family))
    yield opened
    opened.close()


Address = Callable[[int], str]


@pytest.fixture
def address(family: IPFamily) -> Address:
    """Addresses of the family by number."""
    base = ip_address("10.0.0.0" if family is IPFamily.IPV4 else "fd00:10::")
    return lambda number: str(base + number)
