"""The printer of nftables tables prints what ``nft list`` prints, from what was read and rendered."""

import contextlib
import re

import pytest

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.settings import LocalTraffic
from svcproxy.explain.core.nft_print import print_table
from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.rendered_nftables import observed_table, rendered
from svcproxy.explain.core.trace import trace
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from testbed.netns import NetNS
from tests.kernel.test_nftables_table import TABLES, Programmed, one_of_each
from tests.unit.nftables.services import BALANCER, NODE, NODE_PORT, PODS, VIP, options

pytestmark = pytest.mark.kernel

LAYOUTS: dict[str, dict[str, object]] = {
    "by range": {},
    "by interface": {"local_traffic": LocalTraffic(interface="cni0")},
    "by prefix of interfaces": {"local_traffic": LocalTraffic(interface="cni+")},
    "by no detection": {"local_traffic": LocalTraffic()},
    "masquerade all": {"masquerade_all": True, "masquerade_bit": 31},
    "node port ranges": {"ranges": True},
    "no localhost": {"localhost_node_ports": False},
}
RANGES = {
    IPFamily.IPV4: ("192.168.48.0/21", "10.0.0.0/8", "203.0.113.7/32", "127.0.0.0/8"),
    IPFamily.IPV6: ("fd00:192::/61", "fd00:203::7/128", "fd00:10:244::/56"),
}


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_is_printed_as_nft_lists_it(space: NetNS, family: IPFamily, layout: str) -> None:
    more = dict(LAYOUTS[layout])
    if more.pop("ranges", False):
        more["node_port_ranges"] = RANGES[family]
    settings = options(family, **more)
    ports = {port.name: port for port in one_of_each(family)}
    with contextlib.closing(Programmed(space, family)) as made:
        made.settings = settings
        backend = made.backend
        cidrs = (PODS[family],)
        backend.apply(backend.plan(Desired(ports, settings, cidrs), backend.read()))
        listed, read = made.listed(), backend.read()
    from_kernel = print_table(observed_table(read.table, TABLES[family]))
    assert comparable(from_kernel) == comparable(listed)
    assert of_affinity(from_kernel).keys() == of_affinity(listed).keys()
    full = settings_with(settings, cidrs)
    assert comparable(from_render(ports, full)) == comparable(listed)
    assert of_affinity(from_render(ports, full)) == of_affinity(from_kernel)


def test_a_table_that_was_read_is_traced_as_the_rendered_one(
    space: NetNS, family: IPFamily
) -> None:
    settings = options(family)
    ports = {port.name: port for port in one_of_each(family)}
    with contextlib.closing(Programmed(space, family)) as made:
        made.backend.apply(made.backend.plan(Desired(ports, settings), made.backend.read()))
        read = NftRuleset(observed_table(made.backend.read().table, TABLES[family]))
    made_here = NftRuleset(rendered(ports, settings_with(settings, ())))
    client = "198.51.100.18" if family is IPFamily.IPV4 else "fd00:198::18"
    targets = [(f"{VIP[family]}{n}", 80) for n in ("", "1", "2", "3")]
    for address, port in (*targets, (BALANCER[family], 80), (NODE[family], NODE_PORT)):
        packet = Packet(client, address, port)
        host = Host.of(NODE[family])
        found = trace(packet, read, host)
        assert found.verdicts == trace(packet, made_here, host).verdicts
        assert str(found) != "no match"
        again = [NftRuleset.after(each, found.verdicts[0].updates) for each in (read, made_here)]
        assert str(trace(packet, again[0], host)) == str(trace(packet, again[1], host))


def settings_with(settings: NftablesSettings, cidrs: tuple[str, ...]) -> NftablesSettings:
    parts = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return NftablesSettings(**{**parts, "service_cidrs": cidrs, "drop_invalid": True})


def from_render(ports: dict[ServicePortName, ServicePort], settings: NftablesSettings) -> str:
    return print_table(rendered(ports, settings))


_OF_AFFINITY = re.compile(
    r'comment "(to the endpoint that affinity has|which is gone|to one of .*, kept'
    r'|the same without affinity, which is full)"'
)


def of_affinity(text: str) -> dict[str, str]:
    """The rules that nft 1.0.6 cannot list, by their comments: it hides one of two look-ups."""
    return {m[1]: line.strip() for line in text.splitlines() if (m := _OF_AFFINITY.search(line))}


def comparable(text: str) -> list[str]:
    """Blocks in any order, elements in any order; only white space is lost, and affinity's rules."""
    blocks = []
    for block in re.split(
        r"\n\n|\n(?=\t(?:set|map|chain) )|(?<=\{)\n", text.strip().removesuffix("}")
    ):
        lines = [" ".join(line.split()) for line in block.splitlines()]
        lines = [line for line in lines if line and not _OF_AFFINITY.search(line)]
        joined = "\n".join(lines)
        head, opening, rest = joined.partition("elements = { ")
        if opening:
            inside, _, after = rest.partition(" }")
            members = sorted(re.split(r",\s+", inside))
            joined = f"{head}{opening}{', '.join(members)}{after}"
        if not joined.startswith('comment "Kubernetes Services;'):
            blocks.append(joined)
    return sorted(filter(None, blocks))
