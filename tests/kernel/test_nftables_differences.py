"""The nftables table of a real kernel against the desired one: words, objects, reading."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.explain.core.differences import Difference
from svcproxy.explain.core.packet import Host, Packet
from svcproxy.explain.core.trace import trace
from svcproxy.explain.nftables_explainer import EXPLAINER
from svcproxy.explain.nftables_reader import NftKernel
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS
from tests.kernel.test_nftables_table import TABLES, Programmed, one_of_each
from tests.unit.nftables.services import POD, VIP, service_port

pytestmark = pytest.mark.kernel


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


@pytest.fixture
def programmed(space: NetNS, family: IPFamily) -> Iterator[Programmed]:
    with contextlib.closing(Programmed(space, family)) as made:
        made.compare(*one_of_each(family))
        yield made


def read(made: Programmed) -> NftKernel:
    return made.space.call(lambda: EXPLAINER.read(made.settings, ""))


def compared(made: Programmed) -> Sequence[Difference]:
    return EXPLAINER.differences(Desired(made.ports, made.settings), read(made))


def test_a_synced_table_has_no_difference(programmed: Programmed) -> None:
    generation = programmed.space.call(lambda: programmed.backend.read().table.generation)
    assert not compared(programmed)
    assert programmed.backend.read().table.generation == generation


@pytest.mark.parametrize(
    ("damage", "words", "services"),
    [
        ("delete table {t} svcproxy", "table svcproxy: missing", "away empty sticky web"),
        (
            "delete element {t} svcproxy all3 {{ {vip} . tcp . 80 . 1 }}",
            "element {vip} . tcp . 80 . 1 of map all3: missing",
            "web",
        ),
        (
            "add element {t} svcproxy rejected {{ {vip} . tcp . 80 }}",
            "element {vip} . tcp . 80 of set rejected: unexpected",
            "web",
        ),
        (
            "add element {t} svcproxy rejected {{ {vip} . udp . 9 }}",
            "element {vip} . udp . 9 of set rejected: unexpected",
            "",
        ),
        ("flush chain {t} svcproxy all-tiers", "chain all-tiers: different", ""),
        ("flush chain {t} svcproxy all3", "chain all3: different", "web"),
        ("insert rule {t} svcproxy services drop", "chain services: different", ""),
        ("add chain {t} svcproxy mine", "chain mine: unexpected", ""),
        ("add set {t} svcproxy mine {{ type inet_proto ; }}", "set mine: unexpected", ""),
        (
            "add chain {t} svcproxy filter-input {{ policy drop ; }}",
            "chain filter-input: different",
            "",
        ),
        (
            "add table {t} svcproxy {{ flags dormant ; }}",
            "table svcproxy: different",
            "away empty sticky web",
        ),
    ],
)
def test_each_damage_is_named(
    programmed: Programmed, family: IPFamily, damage: str, words: str, services: str
) -> None:
    named = {"t": TABLES[family], "vip": VIP[family]}
    programmed.nft(damage.format(**named))
    (found,) = compared(programmed)
    assert str(found) == words.format(**named)
    assert sorted({name.name for name in found.service_ports}) == services.split()


def test_both_sides_are_quoted(programmed: Programmed, family: IPFamily) -> None:
    t, vip, pod = TABLES[family], VIP[family], POD[family]
    programmed.nft(f"delete element {t} svcproxy all3 {{ {vip} . tcp . 80 . 1 }}")
    other = f"{vip} . tcp . 80 . 1 : {pod}99 . 9999"
    programmed.nft(f"add element {t} svcproxy all3 {{ {other} }}")
    programmed.nft(f"insert rule {t} svcproxy services tcp dport 99 drop")
    element, chain = sorted(compared(programmed), key=lambda found: found.object, reverse=True)
    assert (element.actual, element.desired) == (other, f"{vip} . tcp . 80 . 1 : {pod}2 . 8080")
    assert chain.desired == ""
    assert "99 drop" in chain.actual


def test_a_flushed_map_is_one_line(space: NetNS) -> None:
    family = IPFamily.IPV4
    with contextlib.closing(Programmed(space, family)) as made:
        ports = [service_port(family, name=f"svc{n}", vip=f"10.97.0.{n}") for n in range(1, 40)]
        made.compare(*ports)
        made.nft("flush map ip svcproxy all3")
        (found,) = compared(made)
    assert str(found) == "117 elements of map all3: missing"
    assert len(found.service_ports) == 39
    assert found.desired.endswith("\n…")


def test_objects_are_in_the_listing(programmed: Programmed, family: IPFamily) -> None:
    listing = " ".join(programmed.listed().split())
    ruleset = EXPLAINER.ruleset(read(programmed))
    for port in programmed.ports.values():
        lines = EXPLAINER.objects(ruleset, port, programmed.settings)
        assert lines
        for line in lines:
            verb, kind, table, name, _, text = line.split(maxsplit=5)
            assert (verb, table, name) == ("add", TABLES[family], "svcproxy")
            if kind == "element":
                assert text.removeprefix("{ ").removesuffix(" }") in listing
            elif "$1" not in text:  # nft hides one of two look-ups, see nft_print
                assert text in listing


def test_objects_can_be_given_to_nft(programmed: Programmed) -> None:
    ruleset = EXPLAINER.ruleset(read(programmed))
    web = next(port for port in programmed.ports.values() if port.name.name == "web")
    lines = EXPLAINER.objects(ruleset, web, programmed.settings)
    elements = [line for line in lines if line.startswith("add element ")]
    programmed.space.run("nft", "-f", "-", stdin="\n".join(elements) + "\n")
    assert not compared(programmed)
    assert any("all3" in line for line in elements)
    assert any(line.startswith("add rule ") and "all3" in line for line in lines)


def test_a_remembered_client_is_traced_to_its_endpoint(
    programmed: Programmed, family: IPFamily
) -> None:
    """An entry of affinity decides, and the reading has it."""
    vip, pod = f"{VIP[family]}1", POD[family]
    client = "198.51.100.18" if family is IPFamily.IPV4 else "fd00:198::18"
    packet = Packet(client, vip, 80)
    before = trace(packet, EXPLAINER.ruleset(read(programmed)), Host())
    assert len({verdict.endpoint for verdict in before.verdicts}) == 2
    programmed.nft(
        f"add element {TABLES[family]} svcproxy affinity"
        f" {{ {vip} . 80 . tcp . {client} timeout 1h : 0 . {pod}5 . 8080 }}"
    )
    kernel = read(programmed)
    after = trace(packet, EXPLAINER.ruleset(kernel), Host())
    (verdict,) = after.verdicts
    assert verdict.endpoint in {f"{pod}5:8080", f"[{pod}5]:8080"}
    assert not EXPLAINER.differences(Desired(programmed.ports, programmed.settings), kernel)


FOREIGN = """
table {t} svcproxy {{
    set strange {{ type ipv4_addr . inet_service; flags interval; }}
    set timed {{ type ether_addr; flags timeout; timeout 1h; }}
    counter hits {{ packets 1 bytes 2 }}
    chain second {{ }}
    chain other {{ }}
    map verdicts {{ type inet_service : verdict; elements = {{ 1 : drop, 2 : jump second }} }}
    chain base {{ type filter hook forward priority 7; policy drop; }}
}}
"""
FOREIGN_RULES = (
    'limit rate 5/second burst 9 packets log prefix "strange" group 4',
    "quota over 5 mbytes counter name hits drop",
    "tcp dport { 1-5, 8 } ct mark set 0x5 queue num 3",
    "tcp flags & (syn | ack) == syn tcp option maxseg size set 5",
    "meta mark set numgen inc mod 7 map { 0 : 5, 1 : 8 }",
    'iifname "a*" oifname vmap { "lo" : accept }',
    "ct state vmap { invalid : drop, established : accept }",
    "add @timed { ether saddr timeout 5s }",
    "fib saddr . iif oif missing counter",
    "meta random & 3 == 0 return",
    'meta day "Monday" meta hour "10:00"-"12:00" accept',
    "tcp dport vmap @verdicts",
    "tcp dport 80 tcp sport 1024-65535 ct original packets > 5 meta priority set 1:2",
    "jhash tcp dport mod 3 == 1 drop",
    "rt mtu 1500 socket transparent 1 accept",
    "@th,16,16 80 drop",
)


def test_objects_of_other_programs_are_described(programmed: Programmed, family: IPFamily) -> None:
    """Any rule that nft accepts in the table is described, and breaks nothing."""
    run, t = programmed.space.run, TABLES[family]
    run("nft", "-f", "-", stdin=FOREIGN.format(t=t))
    added = 0
    for rule in FOREIGN_RULES:  # a kernel may lack single expressions
        added += not run("nft", f"add rule {t} svcproxy other {rule}", check=False).returncode
    assert added > len(FOREIGN_RULES) / 2
    found = {str(each): each for each in compared(programmed)}
    assert {"chain other: unexpected", "chain base: unexpected"} <= found.keys()
    assert {"set strange: unexpected", "set timed: unexpected"} <= found.keys()
    assert all(not each.service_ports for each in found.values())
    assert found["chain other: unexpected"].actual.count("\n") == added + 1
    ruleset = EXPLAINER.ruleset(read(programmed))
    for port in programmed.ports.values():
        assert EXPLAINER.objects(ruleset, port, programmed.settings)


def test_a_table_that_changes_all_the_time_is_read(programmed: Programmed) -> None:
    """Readings restart when the table changes, and the daemon's transactions are not refused."""
    web = next(port for port in programmed.ports.values() if port.name.name == "web")
    smaller = structs.replace(web, cluster_endpoints=web.cluster_endpoints[:1])
    stop, outcomes = threading.Event(), list[object]()

    def write() -> None:
        while not stop.is_set():
            outcomes.append(programmed.change(smaller))
            outcomes.append(programmed.change(web))
            stop.wait(0.005)  # a writer without any pause may interrupt each reading

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = [len(read(programmed).table.chains) for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    assert min(sizes) > 20
    assert len(outcomes) > 2
    assert all(outcomes)
    assert not any("compared_again" in dict(each) for each in outcomes)  # type: ignore[call-overload]
    assert not compared(programmed)


def test_missing_permissions_are_explained() -> None:
    program = (
        "from svcproxy.explain.nftables_explainer import EXPLAINER\n"
        "from svcproxy.backends.settings import Settings\n"
        "from svcproxy.model.names import IPFamily as F\n"
        "try: EXPLAINER.read(Settings(F.IPV4), '')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "KernelUnreadableError nf_tables may not be read: run as root or with CAP_NET_ADMIN"
    )
