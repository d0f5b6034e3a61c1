"""The complete backend on a real kernel, with difficult Service ports."""

from collections.abc import Callable, Iterator

import pytest

from svcproxy.backends.base import Desired, Outcome
from svcproxy.backends.ipvs.backend import IpvsBackend, IpvsOptions
from svcproxy.backends.ipvs.core.chains_and_sets import SETS
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.kernel_objects import SetEntry
from svcproxy.netlink.core.operations import AddEntries, FlushSet
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.state.desired import Changes
from testbed.netns import NetNS

V6 = IPFamily.IPV6
Address = Callable[[int], str]


class Bench:
    """A backend in a namespace, driven as by the sync loop."""

    def __init__(self, space: NetNS, family: IPFamily) -> None:
        self.space = space
        self.family = family
        self.ports: dict[ServicePortName, ServicePort] = {}
        self.start()

    def close(self) -> None:
        kernel = self.space.call(lambda: self.backend._kernel)
        for opened in (kernel.ipvs, kernel.sets, kernel.links):
            opened.close()

    def start(self) -> None:
        """Start as a fresh process does."""
        source = "10.0.0.0/8" if self.family is IPFamily.IPV4 else "::1.2.0.0/112"
        self.settings = settings = Settings(
            family=self.family, local_traffic=LocalTraffic(source=source)
        )
        programs = Iptables(Variant.LEGACY, self.family)
        self.backend = IpvsBackend(programs, settings, IpvsOptions())

    def put(self, *ports: ServicePort) -> Outcome:
        """Change Service ports step by step."""
        self.ports.update({port.name: port for port in ports})
        return self.retry(*(port.name for port in ports))

    def retry(self, *names: ServicePortName) -> Outcome:
        def sync() -> Outcome:
            plan = self.backend.plan_changes(
                Changes({n: self.ports.get(n) for n in names}), self.settings
            )
            if plan is None:
                return self._resync()
            return self.backend.apply(plan)

        return self.space.call(sync)

    def resync(self) -> Outcome:
        """Resync."""
        return self.space.call(self._resync)

    def _resync(self) -> Outcome:
        desired = Desired(dict(self.ports), self.settings)
        return self.backend.apply(self.backend.plan(desired, self.backend.read()))

    def is_unchanged(self) -> bool:
        """Whether the backend finds the kernel unchanged."""
        return self.space.call(self.backend.is_unchanged)


@pytest.fixture
def bench(alone: NetNS, family: IPFamily) -> Iterator[Bench]:
    made = Bench(alone, family)
    yield made
    made.close()


def port(
    number: int, frontends: tuple[Frontend, ...], endpoints: tuple[str, ...], **rest: object
) -> ServicePort:
    name = ServicePortName("ns", f"s{number}", "", Protocol.TCP)
    found = tuple(Endpoint(address, 8080, is_local=True) for address in endpoints)
    return ServicePort(name, frontends, found, found, **rest)  # type: ignore[arg-type]


def at(address: str, kind: FrontendKind = FrontendKind.CLUSTER_IP, number: int = 80) -> Frontend:
    local = kind is not FrontendKind.CLUSTER_IP
    return Frontend(kind, address, number, local=local, verdict=Verdict.FORWARD)


COMPATIBLE = ("::102:304", "::ffff:0:102:304", "::5:0", "fd00::102:304")


@pytest.mark.parametrize("family", [V6])
def test_a_restart_writes_nothing_for_ipv4_compatible_addresses(bench: Bench) -> None:
    """The kernel's programs write ``::1.2.3.4`` for Python's ``::102:304``."""
    for number, address in enumerate(COMPATIBLE):
        frontends = (
            at(address),
            at(f"::ff02:{number}", FrontendKind.LOAD_BALANCER, 81),
            at(f"::ff03:{number}", FrontendKind.EXTERNAL_IP, 82),
        )
        ranges = ("::102:0/112", "::ffff:0:0/96", "fd00::/8")
        bench.ports[ServicePortName("ns", f"s{number}", "", Protocol.TCP)] = port(
            number, frontends, ("::102:305", address), source_ranges=ranges
        )
    written = bench.resync().operations
    assert written["real_server_written"] >= 6 * len(COMPATIBLE)
    assert written["restore"]
    bench.close()
    bench.start()
    assert not bench.resync().operations
    assert bench.is_unchanged()


REFUSED = {IPFamily.IPV4: "239.1.1.1", V6: "ff05::1"}


def test_refusals_are_accounted_for(bench: Bench, address: Address) -> None:
    bad = port(1, (at(address(101)),), (address(11), REFUSED[bench.family]))
    good = port(2, (at(address(102)),), (address(11),))
    outcome = bench.resync()
    outcome = bench.put(bad, good)
    assert set(outcome.refused) == {bad.name}
    assert REFUSED[bench.family] in outcome.refused[bad.name]
    assert outcome.sizes["real_servers"] == 2
    again = bench.retry(bad.name)
    assert set(again.refused) == {bad.name}
    assert not again.operations, "a refused retry is not counted as a change"
    assert set(bench.resync().refused) == {bad.name}
    assert bench.is_unchanged(), "a refusal causes resyncs"
    changed = port(1, (at(address(101)),), (address(11), address(12)))
    assert bench.put(changed).operations["real_server_written"] == 1
    assert not bench.resync().operations


def test_a_load_balancer_at_a_multicast_address(bench: Bench, address: Address) -> None:
    """The kernel refuses a multicast address on an interface, and IPVS refuses it, too."""
    vip = at(REFUSED[bench.family], FrontendKind.LOAD_BALANCER)
    bad = port(1, (at(address(101)), vip), (address(11),))
    bench.resync()
    refused = set(bench.put(bad).refused)
    assert refused <= {bad.name}
    assert not bench.put(port(2, (at(address(102)),), (address(11),))).refused
    assert set(bench.retry(bad.name).refused) == refused
    del bench.ports[bad.name]
    assert not bench.retry(bad.name).refused
    assert not bench.resync().operations


@pytest.fixture
def crowded(bench: Bench, address: Address) -> Iterator[str]:
    """The name of a set that another program has filled completely."""
    bench.resync()
    name = SETS[bench.family].reject
    kind = SETS[bench.family].kinds[name]
    other = address(7777)
    entries = [SetEntry(other, p, n) for p in (Protocol.TCP, Protocol.UDP) for n in range(1, 65536)]

    def fill() -> None:
        sets = IpsetSocket(bench.family)
        sets.execute([AddEntries(name, kind, tuple(entries))])
        sets.close()

    bench.space.call(fill)
    yield name

    def empty() -> None:
        sets = IpsetSocket(bench.family)
        sets.execute([FlushSet(name)])
        sets.close()

    bench.space.call(empty)


def test_a_set_that_another_program_filled_is_enlarged(
    bench: Bench, address: Address, crowded: str
) -> None:
    kind = FrontendKind.CLUSTER_IP
    lonely = Frontend(kind, address(101), 80, local=False, verdict=Verdict.REJECT)
    refused = port(1, (lonely,), ())
    outcome = bench.put(refused)
    assert set(outcome.refused) == {refused.name}
    assert "full" in outcome.refused[refused.name]
    outcome = bench.retry(refused.name)
    assert not outcome.refused
    assert not bench.resync().operations


def test_a_rule_deleted_during_a_resync_is_noticed(bench: Bench) -> None:
    """The writes of a resync must not hide changes of other programs since its reading."""
    program = "iptables-legacy" if bench.family is IPFamily.IPV4 else "ip6tables-legacy"
    bench.resync()
    assert bench.is_unchanged()
    bench.space.run(program, "-t", "nat", "-D", "KUBE-MARK-MASQ", "1")

    def sync() -> Outcome:
        observed = bench.backend.read()
        bench.space.run(program, "-t", "filter", "-D", "KUBE-FORWARD", "1")
        return bench.backend.apply(bench.backend.plan(Desired({}, bench.settings), observed))

    assert bench.space.call(sync).operations["chain_written"] == 1
    assert not bench.is_unchanged()
    assert bench.resync().operations["chain_written"] == 1
    assert bench.is_unchanged()
