"""Rules as files for the kernel's tools: ``nft -f``, ``iptables-restore``, ``ipset restore`` and others.

The order of everything that the kernel does not order is fixed, so that two renderings differ only
where the rules do.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE, SETS, grown
from svcproxy.explain.core.iptables_rules import IptablesRuleset, Sets, Tables
from svcproxy.explain.core.ipvs_print import address_lines, set_lines
from svcproxy.explain.core.ipvs_rules import IpvsRuleset, VirtualServer
from svcproxy.explain.core.nft_print import chain_lines
from svcproxy.explain.core.nft_print import set_lines as nft_set_lines
from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.nft_table import NftTable, describe_chain
from svcproxy.explain.core.packet import parse_target
from svcproxy.explain.core.trace import Ruleset
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.kernel_objects import SetKind

_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_KEYWORD = re.compile(r"(?<![\w-])(chain|jump|goto) (all|local)(?![\w-])")
"""Chain names that the kernel accepts but nft 1.0.6 takes for keywords."""
_NOT_IN_NFT = re.compile(r" as \$\d|\[")
"""What ``nft_print`` writes where nft has no syntax."""
_AFFINITY_SET = SetKind("hash:ip")
_AFFINITY_SECONDS = 10800
_SERVICE_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}


class RuleFile(NamedTuple):
    """Rules of one family for one tool.

    Attributes:
        tool: the program that reads it, for example ``ip6tables-restore``.
        command: the command line that loads it from stdin.
        text: the file.
    """

    tool: str
    command: str
    text: str


def rule_files(ruleset: Ruleset | NftTable, family: IPFamily) -> list[RuleFile]:
    """Return the files that load rules into an empty kernel, in the order in which to load them.

    Args:
        ruleset: what ``ModeExplainer.desired`` returned.
        family: its IP family.
    """
    match ruleset:
        case NftRuleset():
            return rule_files(ruleset.table, family)
        case NftTable():
            return [RuleFile("nft", "nft -f -", nft_file(ruleset))]
        case IptablesRuleset():
            sets = (
                _create(name, _AFFINITY_SET, family, _AFFINITY_SECONDS) for name in ruleset.sets
            )
            return [*_ipset(sorted(sets)), _restore(ruleset.tables, family)]
        case IpvsRuleset():
            return _ipvs(ruleset, family)
        case _:
            raise TypeError(f"no tool reads {type(ruleset).__name__}")


def nft_file(table: NftTable) -> str:
    """Return a table as a file for ``nft -f``.

    It differs from ``nft list table`` in two ways, because nft cannot read all that the kernel
    accepts. Chains whose names are keywords of nft get an underscore. Rules of session affinity use
    the parts of a map's value, for which nft has no syntax; they are comments.
    """
    lines = [f"table {table.family} {table.name} {{"]
    blocks = [nft_set_lines(table, name) for name in sorted(table.sets)]
    base = [name for name in table.chains if describe_chain(table.chains[name]).hook >= 0]
    others = sorted(table.chains.keys() - set(base))
    blocks += [chain_lines(table, name) for name in (*sorted(base), *others)]
    for block in blocks:
        lines += [f"\t{_readable(line)}" for line in block] + [""]
    return "\n".join([*lines[:-1], "}", ""])


def _readable(line: str) -> str:
    """Return a line that nft can read."""
    parts = line.split('"')
    if any(_NOT_IN_NFT.search(part) for part in parts[::2]):
        return f"\t# {line.strip()}"
    parts[::2] = (_KEYWORD.sub(r"\1 \2_", part) for part in parts[::2])
    return '"'.join(parts)


def _ipset(lines: Sequence[str]) -> list[RuleFile]:
    return [RuleFile("ipset", "ipset restore", _text(lines))] if lines else []


def _create(name: str, kind: SetKind, family: IPFamily, seconds: int = 0) -> str:
    if not kind.maximum:
        return f"create {name} {kind.type} range 0-65535"
    inet = "inet6" if family is IPFamily.IPV6 else "inet"
    text = f"create {name} {kind.type} family {inet} maxelem {kind.maximum}"
    return f"{text} timeout {seconds}" if seconds else text


def _restore(tables: Tables, family: IPFamily) -> RuleFile:
    """Return the input of iptables-restore; built-in chains of other programs are kept."""
    lines = []
    for table, chains in sorted(tables.items()):
        order = sorted(chains, key=lambda name: (name not in _BUILT_IN, name))
        lines += [f"*{table}"]
        lines += [f":{chain} - [0:0]" for chain in order if chain not in _BUILT_IN]
        lines += [f"-A {chain} {rule}" for chain in order for rule in chains[chain]]
        lines += ["COMMIT"]
    tool = "ip6tables-restore" if family is IPFamily.IPV6 else "iptables-restore"
    return RuleFile(tool, f"{tool} --noflush", _text(lines))


def _ipvs(ruleset: IpvsRuleset, family: IPFamily) -> list[RuleFile]:
    sets: Sets = dict.fromkeys(SETS[family].kinds, frozenset()) | dict(ruleset.rules.sets)
    create = [
        _create(name, grown(kind, len(sets[name])), family)
        for name, kind in sorted(SETS[family].kinds.items())
    ]
    return [
        *_ipset([*create, *set_lines(sets)]),
        RuleFile("ipvsadm", "ipvsadm --restore", _text(_servers(ruleset.servers))),
        _restore(ruleset.rules.tables, family),
        RuleFile("ip", "ip -batch -", _text(_addresses(ruleset))),
    ]


def _addresses(ruleset: IpvsRuleset) -> Iterator[str]:
    """Yield the commands for the addresses; the interface exists once for both families."""
    yield f"link add {DUMMY_INTERFACE} type dummy"
    for line in address_lines(ruleset, DUMMY_INTERFACE):
        yield line.removeprefix("ip ")


def _servers(servers: Mapping[tuple[str, str], VirtualServer]) -> Iterator[str]:
    """Yield virtual servers as ``ipvsadm --save -n`` does, and with their flags, which it omits."""
    for protocol, target in sorted(servers, key=lambda key: (parse_target(key[1]), key[0])):
        server, where = servers[protocol, target], f"{_SERVICE_OPTIONS[protocol]} {target}"
        text = f"-A {where} -s {server.scheduler}"
        if server.timeout:
            text += f" -p {server.timeout}"
        yield f"{text} -b {','.join(server.flags)}" if server.flags else text
        for real in sorted(server.real, key=lambda each: parse_target(each.target)):
            yield f"-a {where} -r {real.target} -m -w {real.weight}"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
