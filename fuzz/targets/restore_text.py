"""Hostile Service ports: the restore input reads back as the planned rules, or the port is refused.

The rules of all other Service ports are the same as without the hostile ones, both from scratch and
incrementally.
"""

from itertools import pairwise

from fuzz.structure import Source
from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.rule_text import NAT
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict

SEEDS = (
    b"",
    b'\x08a"\nCOMMIT\x02\n*\x01x',
    b'\x30"\n-A INPUT -j DROP\n-A INPUT -m comment --comment "\x01b\x01c',
    b"\x05\xff\xfe\\\r\0\x07' -j DR\x00\x01\x02",
    bytes(range(256)),
    b"\x00\x00\x00\x00\x00" + b"\xff" * 60,
)

_GOOD = tuple(
    ServicePort(
        ServicePortName("good", f"s{number}", "http", Protocol.TCP),
        (
            Frontend(
                FrontendKind.CLUSTER_IP,
                f"10.96.0.{number}",
                80,
                local=False,
                verdict=Verdict.FORWARD,
            ),
            Frontend(
                FrontendKind.EXTERNAL_IP,
                f"203.0.113.{number}",
                80,
                local=False,
                verdict=Verdict.REJECT,
            ),
        ),
        (Endpoint("10.244.0.1", 8080),),
        (),
    )
    for number in range(1, 4)
)
_ADDRESSES = (
    "10.96.9.9",
    "::1.2.3.4",
    "",
    "10.96.9.9/8",
    "host",
    '1"\n',
    "1.2.3.4 -j X",
    "\0",
    "99.1.1.1.1",
)
_RANGES = ("10.0.0.0/8", "::/0", "10.0.0.0/8 -j X", "10.0.0.1/8", "1/1", "", "10.0.0.0/\u0661")
_NUMBERS = (80, 0, -1, 65535, 65536, 1 << 20)
_ARGUMENTS = 255  # the limit of iptables-restore per line


def check(data: bytes) -> None:
    """Plan with hostile ports among others and read the restore inputs back."""
    source = Source(data)
    hostile = [_port(source) for _ in range(1 + source.number(3))]
    ports = {port.name: port for port in (_GOOD[0], *hostile, *_GOOD[1:])}
    settings = IptablesSettings(
        IPFamily.IPV4, affinity_sets=source.flag(), hairpin_match=source.flag()
    )
    nothing = Observed({})
    scratch = Planner(settings)
    whole = scratch.plan(Desired(ports, settings), settings, nothing)
    _read_back(whole)
    incremental = Planner(settings)
    incremental.plan(Desired({}, settings), settings, nothing)
    step = incremental.plan_changes(ports)
    _read_back(step)
    assert step.refused.keys() == whole.refused.keys()
    good_only = Planner(settings)
    good_only.plan(Desired({}, settings), settings, nothing)
    expected = good_only.plan_changes({port.name: port for port in _GOOD})
    for plan in (whole, step):
        held = {rule for rules in plan.tables[NAT].write.values() for rule in rules}
        for chain, rules in expected.tables[NAT].write.items():
            if chain in plan.tables[NAT].write and "CLUSTER-IPS" not in chain:
                assert plan.tables[NAT].write[chain][: len(rules)] == rules or held.issuperset(
                    rules
                )
            else:
                assert held.issuperset(rules), chain
    assert not any(port.name in step.refused for port in _GOOD)
    incremental.undo()
    again = incremental.plan_changes(ports)
    assert again.text() == step.text()


def _port(source: Source) -> ServicePort:
    name = ServicePortName(
        source.text(), source.text(), source.text(), source.choice(list(Protocol))
    )
    frontends = tuple(
        Frontend(
            source.choice(list(FrontendKind)),
            source.choice((*_ADDRESSES, source.text(20))),
            source.choice(_NUMBERS),
            local=source.flag(),
            verdict=source.choice(list(Verdict)),
        )
        for _ in range(1 + source.number(3))
    )
    endpoints = tuple(
        Endpoint(source.choice((*_ADDRESSES, source.text(20))), source.choice(_NUMBERS))
        for _ in range(source.number(3))
    )
    return ServicePort(
        name,
        frontends,
        endpoints,
        endpoints[:1],
        affinity_seconds=source.choice((0, 10, 1 << 40)),
        source_ranges=tuple(
            source.choice((*_RANGES, source.text(20))) for _ in range(source.number(2))
        ),
        health_check_node_port=source.choice((0, *_NUMBERS)),
    )


def _read_back(plan: Plan) -> None:
    """Tokenise the input as iptables-restore does, and compare it with the plan line by line."""
    expected = [line for table in plan.tables.values() if table for line in table.lines("t")]
    lines = plan.text().split("\n")[:-1]
    assert len(lines) == len(expected)
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 10_000
        if line.startswith("-"):
            words = _words(line)
            assert len(words) < _ARGUMENTS
            _check_rule(words)


def _check_rule(words: list[str]) -> None:
    assert words[0] in {"-A", "-D", "-I"}
    assert not [w for w in words[1:] if w in {"-A", "-D", "-I", "-F", "-X", "-P", "-N"}]
    assert words.count("-j") == 1
    for option, value in pairwise(words):
        if option == "--comment":
            assert len(value) <= 255
        elif option in {"-d", "-s"}:
            assert set(value) <= set("0123456789abcdef.:/"), value


def _words(line: str) -> list[str]:
    """Split a line as ``add_param_to_argv`` in iptables' ``xshared.c`` does."""
    words: list[str] = []
    word, quoted, inside, escaped = "", False, False, False
    for character in line + " ":
        if inside and (escaped or character not in '\\"'):
            word, escaped = word + character, False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside, quoted = not inside, True
        elif character in " \t\n":
            if word or quoted:
                words.append(word)
            word, quoted = "", False
        else:
            word += character
    assert not inside, line
    return words
