"""iptables-save output with rules of other programs: the plan for svcproxy's chains is unchanged.

Rules of other programs are printed in the format of iptables-save: quoted text with its newlines,
names without quotes. Raw bytes are parsed as well, which must not raise.
"""

from fuzz.structure import Source
from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.cleanup import ChainOwner, removal_inputs, stale_chains
from svcproxy.backends.iptables.core.plan import Observed
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES
from svcproxy.backends.xtables.core.savefile import Saved, parse
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict

SEEDS = (
    b"",
    b"\x01\x02\x20a\n-A INPUT -j KUBE-SERVICES\nCOMMIT\n*nat\n",
    b'\x03\x01\x05"\\\'\n"\x02\x10:KUBE-SVC-X - [0\n\x00',
    b"*nat\n:KUBE-SVC-X - [0:0]\n-A KUBE-SVC-X\n-A\n: \n*\nCOMMIT",
    bytes(range(256)),
    b'\x02\x03\x04"a"b\x01\x03x" \x04\x02\n"',
)

_SETTINGS = IptablesSettings(IPFamily.IPV4)
_NAME_CHARACTERS = "\"\\'|;$*#!:abc-_"


def _ports() -> dict[ServicePortName, ServicePort]:
    found = {}
    for number in range(1, 4):
        name = ServicePortName("ns", f"s{number}", "", Protocol.TCP)
        address = f"10.96.0.{number}"
        frontends = tuple(
            Frontend(FrontendKind.CLUSTER_IP, address, 80 + n, local=False, verdict=verdict)
            for n, verdict in enumerate((Verdict.FORWARD, Verdict.REJECT))
        )
        found[name] = ServicePort(name, frontends, (Endpoint("10.244.0.1", 80),), ())
    return found


_DESIRED = Desired(_ports(), _SETTINGS)


def _own_rules() -> dict[str, list[str]]:
    """Return svcproxy's rules by table, as lines of iptables-save."""
    plan = Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, Observed({}))
    lines: dict[str, list[str]] = {}
    for table in TABLES:
        rules = [
            f"-A {chain} {rule}"
            for chain, texts in plan.tables[table].write.items()
            for rule in texts
        ]
        jumps = [f"-A {jump.source} {jump.text}" for jump in plan.tables[table].jumps]
        lines[table] = [f":{chain} - [0:0]" for chain in plan.tables[table].write] + jumps + rules
    return lines


_OWN_RULES = _own_rules()


def check(data: bytes) -> None:
    """Parse raw bytes, then svcproxy's rules mixed with rules of other programs."""
    _check_inputs(parse(data.decode("utf-8", "surrogateescape")))
    source = Source(data)
    parts = []
    for table in TABLES:
        lines = [_OWN_RULES[table][0]]
        for line in _OWN_RULES[table][1:]:
            lines += [_other_rule(source) for _ in range(source.number(3) if source.left else 0)]
            lines.append(line)
        parts.append("\n".join((f"*{table}", *lines, "COMMIT", "# Completed", "")))
    found = parse("".join(parts))
    plan = Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, Observed(found))
    assert not plan, plan
    assert set(found) == set(TABLES)
    damaged = parse("".join(parts).replace(_OWN_RULES[NAT][-1], "#", 1))
    assert Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, Observed(damaged)).tables[NAT].write
    _check_inputs(found)


def _check_inputs(found: Saved) -> None:
    """Check that plans and clean-up make valid restore inputs for any parsed tables."""
    tables = {FILTER: found.get(FILTER, {}), NAT: found.get(NAT, {})}
    for plan in (
        Planner(_SETTINGS).plan(_DESIRED, _SETTINGS, Observed(tables)),
        Planner(_SETTINGS).plan(Desired({}, _SETTINGS), _SETTINGS, Observed(tables)),
    ):
        text = plan.text()
        assert text.count("\n") == sum(1 for t in plan.tables.values() if t for _ in t.lines("t"))
    for owner in (None, *ChainOwner):
        for table, removal in stale_chains(tables, owner).items():
            for text in removal_inputs(removal, table, in_chunks=True):
                assert text.endswith("COMMIT\n")


def _other_rule(source: Source) -> str:
    """Return a rule of another program, in the format of iptables-save."""
    chain = _name(source) if source.flag() else source.choice(("INPUT", "FORWARD", "POSTROUTING"))
    parts = [f"-A {chain}"]
    if source.flag():
        parts.append(f"-i {_name(source)}")
    parts.extend(
        f"-m comment --comment {_quoted(source.text(40))}" for _ in range(source.number(3))
    )
    parts.append(f"-j {_name(source)}" if source.flag() else "-j ACCEPT")
    return " ".join(parts)


def _name(source: Source) -> str:
    """Return the name of a chain or interface, which iptables-save prints without quotes."""
    length = 1 + source.number(8)
    return "".join(source.choice(_NAME_CHARACTERS) for _ in range(length))


def _quoted(text: str) -> str:
    """Return a text in the format of ``xtables_save_string``."""
    text = text.replace("\0", "")
    if text and all(c.isascii() and (c.isalnum() or c in "_-") for c in text):
        return text
    escaped = "".join(f"\\{c}" if c in "\"\\'" else c for c in text)
    return f'"{escaped}"'
