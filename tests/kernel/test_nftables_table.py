"""The nftables table in the real kernel: listing, reading back, and the cost of changes."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from svcproxy.backends.base import BackendError, BackendUnavailable, Desired
from svcproxy.backends.nftables import backend as backend_module
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.nftables.client import NftablesClient, RefusedError
from svcproxy.backends.nftables.core.table_objects import all_sets
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import Endpoint, ServicePort, Verdict
from svcproxy.netlink.core.attributes import text, u32
from svcproxy.netlink.core.messages import FLAG_CREATE
from svcproxy.netlink.core.nf_tables.dump import OWNED
from svcproxy.netlink.core.nf_tables.protocol import NEW_TABLE, TABLE_OF
from svcproxy.netlink.core.nf_tables.transaction import Message, Plan
from svcproxy.state.desired import Changes
from testbed.netns import NetNS
from tests.unit.nftables.services import NODE_PORT, VIP, endpoints, options, service_port

pytestmark = pytest.mark.kernel

TABLES = {IPFamily.IPV4: "ip", IPFamily.IPV6: "ip6"}


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


class Programmed:
    """A backend in a network namespace, called like the sync loop does."""

    def __init__(self, space: NetNS, family: IPFamily) -> None:
        self.space = space
        self.family = family
        self.settings = options(family)
        self.backend = self._make()
        self.ports: dict[Any, ServicePort] = {}

    def _make(self) -> NftablesBackend:
        made = NftablesBackend(self.family, self.settings)
        try:
            # The socket belongs to the namespace of the thread that opens it.
            self.space.call(made.probe)
        except BackendUnavailable:
            made.close()
            raise
        return made

    def compare(self, *ports: ServicePort) -> dict[str, int]:
        self.ports = {port.name: port for port in ports} or self.ports
        backend = self.backend
        plan = backend.plan(Desired(self.ports, self.settings), backend.read())
        return dict(backend.apply(plan).operations)

    def change(self, *ports: ServicePort) -> dict[str, int] | None:
        changes = Changes({port.name: port for port in ports})
        self.ports.update(changes.ports)  # type: ignore[arg-type]
        plan = self.backend.plan_changes(changes, self.settings)
        return None if plan is None else dict(self.backend.apply(plan).operations)

    def restart(self) -> dict[str, int]:
        self.backend.close()
        self.backend = self._make()
        return self.compare()

    def close(self) -> None:
        self.backend.close()

    def nft(self, command: str) -> str:
        return self.space.run("nft", "-s", *command.split()).stdout

    def listed(self) -> str:
        return self.nft(f"list table {TABLES[self.family]} svcproxy")

    def elements(self, name: str) -> list[Any]:
        """Return the elements of a set or map from nft's JSON output."""
        kind = "map" if name.startswith(("all", "local", "node-port-all")) else "set"
        text = self.nft(f"--json list {kind} {TABLES[self.family]} svcproxy {name}")
        (found,) = (part[kind] for part in json.loads(text)["nftables"] if kind in part)
        return list(found.get("elem", []))


@pytest.fixture
def programmed(space: NetNS, family: IPFamily) -> Iterator[Programmed]:
    with contextlib.closing(Programmed(space, family)) as made:
        yield made


def one_of_each(family: IPFamily) -> tuple[ServicePort, ...]:
    ranges = ("198.51.100.16/28", "10.0.0.0/8") if family == "IPv4" else ("fd00:198::/64",)
    return (
        service_port(family, (1, 2, 3), external=True, local=True, ranges=ranges),
        service_port(family, (4, 5), name="sticky", vip=f"{VIP[family]}1", seconds=10800),
        service_port(family, name="empty", vip=f"{VIP[family]}2", verdict=Verdict.REJECT),
        service_port(family, (3,), name="away", vip=f"{VIP[family]}3", verdict=Verdict.DROP),
    )


# --- Listing ---------------------------------------------------------------------------------


def test_nft_lists_addresses_ports_and_the_names_of_services(
    programmed: Programmed, family: IPFamily
) -> None:
    programmed.compare(*one_of_each(family))
    listed = programmed.listed()
    assert f'{VIP[family]} . tcp . 80 comment "default/web:http"' in listed
    assert f'tcp . {NODE_PORT} comment "default/web:http"' in listed
    for number, endpoint in enumerate(endpoints(family, (1, 2, 3))):
        element = f"{VIP[family]} . tcp . 80 . {number} : {endpoint.address} . {endpoint.port}"
        assert element in listed
    assert f'{VIP[family]}2 . tcp . 80 comment "default/empty:http"' in listed
    assert 'comment "frontends with 3 endpoints"' in listed
    address = "ip" if family is IPFamily.IPV4 else "ip6"
    for rule in (
        f"dnat {address} to {address} daddr . meta l4proto . th dport . numgen random mod 3 map @all3",
        f"{address} daddr . meta l4proto . th dport @external-ips-local goto external-local",
        "fib saddr type local meta mark set meta mark | 0x00004000 goto all",
        f"ct status dnat {address} saddr . {address} daddr @hairpins masquerade fully-random",
        f"{address} daddr . meta l4proto . th dport @rejected reject",
        'comment "to the endpoint that affinity has"',
    ):
        assert rule in listed, rule


def test_json_has_the_same_elements(programmed: Programmed, family: IPFamily) -> None:
    programmed.compare(*one_of_each(family))
    numbered = [
        [{"concat": [VIP[family], "tcp", 80, n]}, {"concat": [endpoint.address, endpoint.port]}]
        for n, endpoint in enumerate(endpoints(family, (1, 2, 3)))
    ]
    assert all(element in programmed.elements("all3") for element in numbered)
    assert {"concat": [VIP[family], "tcp", 80]} in [
        e["elem"]["val"] for e in programmed.elements("cluster-ips")
    ]
    (guarded,) = programmed.elements("guarded")
    assert guarded["elem"]["comment"] == "default/web:http"
    assert [e["elem"]["val"]["concat"][0] for e in programmed.elements("dropped")] == [
        f"{VIP[family]}3"
    ]


def test_the_longest_name_fits_into_the_comment(programmed: Programmed, family: IPFamily) -> None:
    long = service_port(family, name="n" * 63)
    name = long.name._replace(namespace="s" * 63, port="p" * 15)
    programmed.compare(ServicePort(name, long.frontends, long.cluster_endpoints, ()))
    assert f'comment "{"s" * 63}/{"n" * 63}:{"p" * 15}"' in programmed.listed()


# --- Reading back ------------------------------------------------------------------------------


def test_a_restart_changes_nothing(programmed: Programmed, family: IPFamily) -> None:
    programmed.compare(*one_of_each(family))
    before = programmed.listed()
    assert programmed.restart() == {}
    assert programmed.compare() == {}
    assert programmed.listed() == before


@pytest.mark.behaviour("Cluster IPs: Spellings of IPv6 addresses")
def test_a_restart_changes_nothing_at_ipv4_compatible_addresses(space: NetNS) -> None:
    """nft and ``ipaddress`` format such addresses differently."""
    family = IPFamily.IPV6
    ports = [
        service_port(family, (1, 2), name="written", vip="::1.2.3.4", external=True),
        service_port(family, (1, 2), name="canonical", vip="::102:305"),
    ]
    with contextlib.closing(Programmed(space, family)) as programmed:
        programmed.compare(*ports)
        assert "::1.2.3.4 . tcp . 80" in programmed.listed()
        assert programmed.restart() == {}


def test_a_restart_applies_changes_made_while_stopped(
    programmed: Programmed, family: IPFamily
) -> None:
    first, *rest = one_of_each(family)
    programmed.compare(first, *rest)
    later = service_port(family, (4, 5, 7), name="sticky", vip=f"{VIP[family]}1", seconds=10800)
    programmed.ports[later.name] = later
    operations = programmed.restart()
    assert operations["element_added"] == 3 + 1, (
        "a longer list, and one more endpoint that clients may keep"
    )
    assert programmed.restart() == {}


@pytest.mark.parametrize(
    "damage",
    [
        "delete table {t} svcproxy",
        "flush ruleset",
        "flush table {t} svcproxy",
        "flush chain {t} svcproxy all-tiers",
        "flush set {t} svcproxy cluster-ips",
        "delete element {t} svcproxy all3 {{ {vip} . tcp . 80 . 1 }}",
        "add element {t} svcproxy rejected {{ {vip} . tcp . 80 }}",
        "insert rule {t} svcproxy services drop",
        "add rule {t} svcproxy nat-output counter",
        "add chain {t} svcproxy mine",
        "add set {t} svcproxy mine {{ type inet_proto ; }}",
        "add chain {t} svcproxy filter-input {{ policy drop ; }}",
        "add table {t} svcproxy {{ flags dormant ; }}",
    ],
)
def test_a_comparison_repairs(programmed: Programmed, family: IPFamily, damage: str) -> None:
    programmed.compare(*one_of_each(family))
    whole = sorted(programmed.listed().split())
    assert programmed.backend.is_unchanged()
    programmed.nft(damage.format(t=TABLES[family], vip=VIP[family]))
    assert not programmed.backend.is_unchanged()
    assert programmed.compare()
    assert sorted(programmed.listed().split()) == whole
    assert programmed.compare() == {}
    assert programmed.backend.is_unchanged()


def test_a_table_owned_by_another_process_is_reported(
    programmed: Programmed, family: IPFamily
) -> None:
    owned = text(TABLE_OF, "svcproxy") + u32(2, OWNED)
    other = programmed.space.call(lambda: NftablesClient(family))
    other.transact([Message(NEW_TABLE, FLAG_CREATE, owned, "a table of its own")])
    with pytest.raises(BackendError, match=rf"owned by .* {other.port_id} .*: end that process"):
        programmed.compare(*one_of_each(family))
    other.close()
    assert programmed.compare(*one_of_each(family))["table_added"]
    assert programmed.compare() == {}


# --- The cost of changes -------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 2000])
def test_a_change_costs_the_same_in_any_cluster(
    programmed: Programmed, family: IPFamily, others: int
) -> None:
    def vip(number: int) -> str:
        return (
            f"10.97.{number // 250}.{number % 250}" if family == "IPv4" else f"fd00:97::{number:x}"
        )

    unrelated = [service_port(family, (1, 3, 5), name=f"o{n}", vip=vip(n)) for n in range(others)]
    kept = service_port(
        family, (1, 3, 5, 7), name="four", vip=vip(9999 if family == "IPv6" else 60000)
    )
    programmed.compare(service_port(family, (1, 3, 5)), kept, *unrelated)
    assert programmed.change(service_port(family, (1, 3, 9))) == {
        "element_added": 1,
        "element_deleted": 1,
    }
    assert programmed.change(service_port(family, (1, 3, 9, 11)))["element_added"] == 4  # type: ignore[index]
    new = service_port(family, (1, 3, 5, 7), name="new", vip=f"{VIP[family]}9")
    assert programmed.change(new) == {"element_added": 6}
    assert programmed.restart() == {}


class Messages:
    """Counts the netlink messages of a backend: transactions, and requests for information."""

    def __init__(self, backend: NftablesBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self._counts = {"transactions": 0, "requests": 0}
        connection = backend._table._client
        for method, kind in (
            ("transact", "transactions"),
            ("generation", "requests"),
            ("get", "requests"),
            ("dump", "requests"),
        ):
            monkeypatch.setattr(
                connection, method, self._counted(getattr(connection, method), kind)
            )

    def _counted(self, method: Any, kind: str) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._counts[kind] += 1
            return method(*arguments, **named)

        return counted

    def take(self) -> tuple[int, int]:
        """Return the transactions and requests since the last call."""
        counts = self._counts["transactions"], self._counts["requests"]
        self._counts = dict.fromkeys(self._counts, 0)
        return counts


def test_a_change_is_one_message(
    space: NetNS, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction itself checks the generation, so no request precedes it."""
    other = next(f for f in IPFamily if f is not family)
    with (
        contextlib.closing(Programmed(space, family)) as programmed,
        contextlib.closing(Programmed(space, other)) as sibling,
    ):
        programmed.compare(service_port(family, (1, 3, 5)))
        sibling.compare(service_port(other, (1, 3, 5)))
        messages = Messages(programmed.backend, monkeypatch)
        programmed.change(service_port(family, (1, 3, 9)))
        assert messages.take() == (1, 0)
        programmed.change(service_port(family, (1, 3, 5, 9)))
        assert messages.take() == (2, 0), "a new map, and its elements"
        sibling.change(service_port(other, (1, 3, 9)))
        programmed.change(service_port(family, (1, 3, 5, 7)))
        assert messages.take() == (1, 0), "the other family's transactions are known"
        programmed.change(service_port(family, (1, 3, 5, 7)))
        assert messages.take() == (0, 0), "no effect"


def test_after_another_programs_transaction_the_table_is_checked_once(
    programmed: Programmed, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    programmed.compare(service_port(family, (1, 3, 5)))
    messages = Messages(programmed.backend, monkeypatch)
    programmed.nft("add table inet other")
    programmed.change(service_port(family, (1, 3, 9)))
    assert messages.take() == (2, 2), "refused; generation and table handle; accepted"
    programmed.change(service_port(family, (1, 3, 5)))
    assert messages.take() == (1, 0)


def test_planning_sends_nothing(
    programmed: Programmed, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    programmed.compare(service_port(family, (1, 3, 5)))
    backend, port = programmed.backend, service_port(family, (1, 3, 9))
    observed = backend.read()
    messages = Messages(backend, monkeypatch)
    backend.plan(Desired({port.name: port}, programmed.settings), observed)
    backend.plan_changes(Changes({port.name: port}), programmed.settings)
    assert messages.take() == (0, 0)


def test_an_incremental_change_reads_no_table(
    programmed: Programmed, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    programmed.compare(*one_of_each(family))

    def fail(*_: Any) -> None:
        raise AssertionError("a dump")

    monkeypatch.setattr("svcproxy.backends.nftables.client.NftablesClient.dump", fail)
    programmed.nft("add table ip other")  # a new generation
    assert programmed.change(service_port(family, (1, 2, 5), external=True, local=True))


# --- Other programs ------------------------------------------------------------------------------------


def test_changes_of_other_tables_cause_no_comparison(
    programmed: Programmed, family: IPFamily
) -> None:
    programmed.compare(*one_of_each(family))
    programmed.nft("add table inet other")
    assert not programmed.backend.is_unchanged(), "another program may have changed the table"
    operations = programmed.change(service_port(family, (1, 2, 5), external=True, local=True))
    assert operations is not None
    assert "compared_again" not in operations


def test_the_other_familys_transactions_are_recognised(space: NetNS) -> None:
    with (
        contextlib.closing(Programmed(space, IPFamily.IPV4)) as four,
        contextlib.closing(Programmed(space, IPFamily.IPV6)) as six,
    ):
        four.compare(service_port(IPFamily.IPV4))
        six.compare(service_port(IPFamily.IPV6))
        four.change(service_port(IPFamily.IPV4, (1, 2)))
        assert four.backend.is_unchanged()
        assert six.backend.is_unchanged()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_change_restores_a_table_that_is_gone(
    programmed: Programmed, family: IPFamily, *, replaced: bool
) -> None:
    programmed.compare(*one_of_each(family))
    programmed.nft(f"delete table {TABLES[family]} svcproxy")
    if replaced:
        programmed.nft(f"add table {TABLES[family]} svcproxy")
    operations = programmed.change(service_port(family, (1, 2, 5, 7)))
    assert operations is not None
    assert operations["compared_again"] == 1
    assert operations.get("table_added", 0) == (not replaced)
    assert programmed.compare() == {}


def test_a_change_that_meets_foreign_edits_is_compared_in_the_same_sync(
    programmed: Programmed, family: IPFamily
) -> None:
    programmed.compare(service_port(family, (1, 3, 5)))
    programmed.nft(f"flush map {TABLES[family]} svcproxy all3")
    operations = programmed.change(service_port(family, (1, 3, 9)))
    assert operations == {"element_added": 3, "compared_again": 1}
    assert programmed.restart() == {}


def test_another_programs_transaction_after_planning_is_harmless(
    programmed: Programmed, family: IPFamily
) -> None:
    """The generation is stale, but the other program changed only its own table."""
    programmed.compare(service_port(family, (1, 3, 5)))
    port = service_port(family, (1, 3, 9))
    plan = programmed.backend.plan_changes(Changes({port.name: port}), programmed.settings)
    assert plan is not None
    programmed.nft("add table inet other")
    assert programmed.backend.apply(plan).operations == {"element_added": 1, "element_deleted": 1}


def test_a_stale_comparison_is_repeated(programmed: Programmed, family: IPFamily) -> None:
    programmed.compare(service_port(family, (1, 3, 5)))
    backend = programmed.backend
    port = service_port(family, (1, 3, 9))
    plan = backend.plan(Desired({port.name: port}, programmed.settings), backend.read())
    programmed.nft(f"flush chain {TABLES[family]} svcproxy services")
    operations = backend.apply(plan).operations
    assert operations["compared_again"] == 1
    assert operations["chain_flushed"] == 1
    assert programmed.compare(port) == {}


def test_a_refused_transaction_names_the_element(programmed: Programmed, family: IPFamily) -> None:
    programmed.compare(service_port(family))
    kernel = programmed.backend._table
    observed = programmed.backend.read().table
    (key,) = observed.elements["cluster-ips"]
    plan = Plan(add={"cluster-ips": {key: observed.elements["cluster-ips"][key]}})
    with pytest.raises(RefusedError) as refused:
        kernel.commit(plan, all_sets(programmed.settings, ()))
    assert str(refused.value) == (
        f"cannot add an element of cluster-ips: {VIP[family]} . tcp . 80 (default/web:http):"
        " File exists"
    )


def test_clean_up_deletes_only_the_own_table(programmed: Programmed, family: IPFamily) -> None:
    programmed.nft("add table ip other")
    programmed.compare(*one_of_each(family))
    programmed.backend.clean_up()
    assert programmed.nft("list ruleset") == "table ip other {\n}\n"
    programmed.backend.clean_up()


# --- Probing -----------------------------------------------------------------------------------


def test_probing_leaves_no_trace(programmed: Programmed) -> None:
    assert programmed.nft("list ruleset") == ""


def test_a_kernel_that_is_too_old(space: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "MINIMUM_KERNEL", (99, 1))
    with pytest.raises(BackendUnavailable, match=r"needs kernel 99\.1 or later, this is \d"):
        Programmed(space, IPFamily.IPV4)


def test_missing_permissions_are_reported() -> None:
    program = (
        "from svcproxy.backends.nftables.backend import NftablesBackend\n"
        "from svcproxy.backends.settings import Settings\n"
        "from svcproxy.model.names import IPFamily as F\n"
        "try: NftablesBackend(F.IPV4, Settings(F.IPV4)).probe()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        "BackendUnavailable nf_tables: not permitted: run as root or with CAP_NET_ADMIN"
    )


def test_a_missing_expression_is_reported(space: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "svcproxy.netlink.core.nf_tables.expressions.random_number",
        lambda *_: b"\x1c\0\x01\x80\x0b\0\x01\0numgem\0\0\x0c\0\x02\x80\x08\0\x01\0\0\0\0\x01",
    )
    with pytest.raises(
        BackendUnavailable, match="this kernel cannot run nftables mode: cannot add"
    ):
        Programmed(space, IPFamily.IPV4)


# --- Size --------------------------------------------------------------------------------------


def test_many_services_load_and_compare(programmed: Programmed, family: IPFamily) -> None:
    """The transaction exceeds the limits of a netlink attribute and of default socket buffers."""

    def made(number: int) -> ServicePort:
        high, low = divmod(number, 250)
        vip = f"10.97.{high}.{low}" if family == "IPv4" else f"fd00:97::{number:x}"
        port = service_port(family, (), name=f"svc-{number}", vip=vip)
        pod = f"10.{number % 200}.{number // 200}." if family == "IPv4" else f"fd00:{number:x}::"
        found = tuple(Endpoint(f"{pod}{n}", 8080) for n in range(1, 6))
        return ServicePort(port.name, port.frontends, found, ())

    operations = programmed.compare(*(made(number) for number in range(5000)))
    assert operations["element_added"] == 5000 * 7
    assert programmed.restart() == {}
    with contextlib.suppress(BackendError):
        programmed.backend.clean_up()
