"""Damages the objects of IPVS mode, as another root process on the node might."""

import random

from chaos.faults import Fault
from chaos.world import World

LINK = "kube-ipvs0"
_MODES = ("ipvs",)
_SERVICE = {"TCP": "-t", "UDP": "-u", "SCTP": "-q"}


def _run(world: World, *words: str) -> str:
    """Run a program; ignore failures, because the daemon may have changed the object meanwhile."""
    return world.node.netns.run(*words, check=False).stdout


def _virtual_servers(world: World) -> list[tuple[str, ...]]:
    """Return the virtual servers as arguments of ``ipvsadm``."""
    lines = _run(world, "ipvsadm", "-L", "-n").splitlines()
    words = [line.split() for line in lines]
    return [(_SERVICE[w[0]], w[1]) for w in words if w and w[0] in _SERVICE]


def _delete_virtual_server(world: World, chance: random.Random) -> None:
    if found := _virtual_servers(world):
        _run(world, "ipvsadm", "-D", *chance.choice(found))


def _delete_real_server(world: World, chance: random.Random) -> None:
    present: list[tuple[str, ...]] = []
    virtual: tuple[str, ...] = ()
    for line in _run(world, "ipvsadm", "-L", "-n").splitlines():
        words = line.split()
        if words and words[0] in _SERVICE:
            virtual = (_SERVICE[words[0]], words[1])
        elif virtual and words and words[0] == "->":
            present.append((*virtual, "-r", words[1]))
    if present:
        _run(world, "ipvsadm", "-d", *chance.choice(present))


def _flush_virtual_servers(world: World, _chance: random.Random) -> None:
    _run(world, "ipvsadm", "-C")


def _sets(world: World) -> list[str]:
    return _run(world, "ipset", "list", "-n").split()


def _delete_entry(world: World, chance: random.Random) -> None:
    saved = [line.split() for line in _run(world, "ipset", "save").splitlines()]
    if entries := [words for words in saved if words and words[0] == "add"]:
        words = chance.choice(entries)
        _run(world, "ipset", "del", words[1], words[2])


def _flush_ipset(world: World, chance: random.Random) -> None:
    if names := _sets(world):
        _run(world, "ipset", "flush", chance.choice(names))


def _delete_address(world: World, chance: random.Random) -> None:
    lines = _run(world, "ip", "-o", "addr", "show", "dev", LINK).splitlines()
    found = [words[3] for line in lines if (words := line.split()) and "link" not in words[7:8]]
    if found:
        _run(world, "ip", "addr", "del", chance.choice(found), "dev", LINK)


def _delete_link(world: World, _chance: random.Random) -> None:
    _run(world, "ip", "link", "del", LINK)


def _iptables(world: World, family: int, *words: str) -> str:
    program = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    return _run(world, program, "-w", "5", *words)


def _flush_tables(world: World, chance: random.Random) -> None:
    _iptables(world, chance.choice((4, 6)), "-t", chance.choice(("nat", "filter")), "-F")


def _delete_rule(world: World, chance: random.Random) -> None:
    family, table = chance.choice((4, 6)), chance.choice(("nat", "nat", "filter"))
    listed = _iptables(world, family, "-t", table, "-S").splitlines()
    chains = [line.split()[1] for line in listed if line.startswith("-A ")]
    if proxy_chains := [name for name in chains if name.startswith("KUBE-")]:
        chain = chance.choice(proxy_chains)
        _iptables(
            world,
            family,
            "-t",
            table,
            "-D",
            chain,
            str(chance.randrange(proxy_chains.count(chain)) + 1),
        )


DAMAGE = (
    Fault("virtual-server", _delete_virtual_server, damages=True, seconds=1, modes=_MODES),
    Fault("real-server", _delete_real_server, damages=True, seconds=1, modes=_MODES),
    Fault("all-virtual-servers", _flush_virtual_servers, damages=True, seconds=1, modes=_MODES),
    Fault("ipset-entry", _delete_entry, damages=True, seconds=1, modes=_MODES),
    Fault("flush-ipset", _flush_ipset, damages=True, seconds=1, modes=_MODES),
    Fault("address", _delete_address, damages=True, seconds=1, modes=_MODES),
    Fault("link", _delete_link, damages=True, seconds=1, modes=_MODES),
    Fault("flush-tables", _flush_tables, damages=True, seconds=1, modes=_MODES),
    Fault("delete-rule", _delete_rule, damages=True, seconds=1, modes=_MODES),
)
