"""Damages the daemon's rules, as another root process on the node might."""

import json
import random
from typing import Any

from chaos.faults import Fault
from chaos.world import World

TABLE = "svcproxy"
_FAMILIES = {4: "ip", 6: "ip6"}


# --- nftables mode -------------------------------------------------------------------------------


def _nft(world: World, *words: str) -> None:
    """Run nft; ignore failures, because the daemon may have deleted the object meanwhile."""
    world.node.netns.run("nft", *words, check=False)


def listed(world: World, family: int) -> list[dict[str, Any]]:
    """Return the objects of svcproxy's table with their handles, as ``nft -j`` lists them."""
    done = world.node.netns.run(
        "nft", "-j", "-a", "list", "table", _FAMILIES[family], TABLE, check=False
    )
    if done.returncode:
        return []
    entries: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return entries


def _some(world: World, chance: random.Random, *kinds: str) -> tuple[str, dict[str, Any]] | None:
    """Choose one object of these kinds, of either family."""
    family = chance.choice((4, 6))
    found = [
        (_FAMILIES[family], entry[kind])
        for entry in listed(world, family)
        for kind in kinds
        if kind in entry
    ]
    return chance.choice(found) if found else None


def _delete_table(world: World, chance: random.Random) -> None:
    _nft(world, "delete", "table", _FAMILIES[chance.choice((4, 6))], TABLE)


def _flush_table(world: World, chance: random.Random) -> None:
    _nft(world, "flush", "table", _FAMILIES[chance.choice((4, 6))], TABLE)


def _flush_ruleset(world: World, _chance: random.Random) -> None:
    _nft(world, "flush", "ruleset")


def _delete_rule(world: World, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 4)):
        if found := _some(world, chance, "rule"):
            family, rule = found
            handle = str(rule["handle"])
            _nft(world, "delete", "rule", family, TABLE, rule["chain"], "handle", handle)


def _flush_chain(world: World, chance: random.Random) -> None:
    if found := _some(world, chance, "chain"):
        family, chain = found
        _nft(world, "flush", "chain", family, TABLE, chain["name"])
        _nft(world, "delete", "chain", family, TABLE, chain["name"])


def _delete_element(world: World, chance: random.Random) -> None:
    if found := _some(world, chance, "map", "set"):
        family, each = found
        if elements := each.get("elem"):
            key = _key(chance.choice(elements))
            _nft(world, "delete", "element", family, TABLE, each["name"], "{", key, "}")


def _key(element: Any) -> str:
    """Convert the key of an element from nft's JSON to nft's syntax."""
    if isinstance(element, list):  # of a map: key and value
        element = element[0]
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    if isinstance(element, dict) and "concat" in element:
        return " . ".join(_key(part) for part in element["concat"])
    if isinstance(element, dict) and "prefix" in element:
        return f"{element['prefix']['addr']}/{element['prefix']['len']}"
    return str(element)


def _flush_set(world: World, chance: random.Random) -> None:
    if found := _some(world, chance, "map", "set"):
        family, each = found
        _nft(world, "flush", "map" if "map" in each else "set", family, TABLE, each["name"])


def _intrude(world: World, chance: random.Random) -> None:
    """Insert a rule into one of svcproxy's chains."""
    if found := _some(world, chance, "chain"):
        family, chain = found
        _nft(world, "insert", "rule", family, TABLE, chain["name"], "counter", "return")


# --- iptables mode -------------------------------------------------------------------------------


def _iptables(world: World, family: int, *words: str) -> None:
    program = f"{'iptables' if family == 4 else 'ip6tables'}-{world.settings.variant}"
    world.node.netns.run(program, "-w", "5", *words, check=False)


def _chains(world: World, family: int, table: str) -> dict[str, int]:
    """Return svcproxy's chains with the number of their rules."""
    program = f"{'iptables' if family == 4 else 'ip6tables'}-{world.settings.variant}-save"
    saved = world.node.netns.run(program, "-t", table, check=False).stdout
    found: dict[str, int] = {}
    for line in saved.splitlines():
        words = line.split()
        if line.startswith(":KUBE-"):
            found[words[0][1:]] = 0
        elif line.startswith("-A KUBE-"):
            found[words[1]] += 1
    return found


def _flush_tables(world: World, chance: random.Random) -> None:
    _iptables(world, chance.choice((4, 6)), "-t", chance.choice(("nat", "nat", "filter")), "-F")


def _delete_rules(world: World, chance: random.Random) -> None:
    family, table = chance.choice((4, 6)), chance.choice(("nat", "nat", "nat", "filter"))
    chains = _chains(world, family, table)
    for _ in range(chance.randrange(1, 4)):
        if filled := [name for name, count in chains.items() if count]:
            chain = chance.choice(filled)
            number = chance.randrange(chains[chain]) + 1
            chains[chain] -= 1
            _iptables(world, family, "-t", table, "-D", chain, str(number))


def _flush_one(world: World, chance: random.Random) -> None:
    family = chance.choice((4, 6))
    if chains := list(_chains(world, family, "nat")):
        chain = chance.choice(chains)
        _iptables(world, family, "-t", "nat", "-F", chain)
        _iptables(world, family, "-t", "nat", "-X", chain)


def _delete_jump(world: World, chance: random.Random) -> None:
    note = ("-m", "comment", "--comment", "kubernetes service portals")
    chain = chance.choice(("PREROUTING", "OUTPUT"))
    family = chance.choice((4, 6))
    _iptables(world, family, "-t", "nat", "-D", chain, *note, "-j", "KUBE-SERVICES")


def _intrude_chain(world: World, chance: random.Random) -> None:
    family = chance.choice((4, 6))
    if chains := list(_chains(world, family, "nat")):
        _iptables(world, family, "-t", "nat", "-I", chance.choice(chains), "-j", "RETURN")


def _flush_ipset(world: World, chance: random.Random) -> None:
    names = world.node.netns.run("ipset", "list", "-n", check=False).stdout.split()
    if names:
        name = chance.choice(names)
        world.node.netns.run("ipset", chance.choice(("flush", "destroy")), name, check=False)


_NFTABLES, _IPTABLES = ("nftables",), ("nft", "legacy")

DAMAGE = (
    Fault("delete-table", _delete_table, damages=True, seconds=1, modes=_NFTABLES),
    Fault("flush-table", _flush_table, damages=True, seconds=1, modes=_NFTABLES),
    Fault("flush-ruleset", _flush_ruleset, damages=True, seconds=1, modes=_NFTABLES),
    Fault("delete-rule", _delete_rule, damages=True, seconds=1, modes=_NFTABLES),
    Fault("flush-chain", _flush_chain, damages=True, seconds=1, modes=_NFTABLES),
    Fault("delete-element", _delete_element, damages=True, seconds=1, modes=_NFTABLES),
    Fault("flush-set", _flush_set, damages=True, seconds=1, modes=_NFTABLES),
    Fault("intrude", _intrude, damages=True, seconds=1, modes=_NFTABLES),
    Fault("flush-tables", _flush_tables, weight=6, damages=True, seconds=1, modes=_IPTABLES),
    Fault("delete-rules", _delete_rules, weight=6, damages=True, seconds=1, modes=_IPTABLES),
    Fault("flush-chain", _flush_one, weight=6, damages=True, seconds=1, modes=_IPTABLES),
    Fault("delete-jump", _delete_jump, damages=True, seconds=1, modes=_IPTABLES),
    Fault("intrude", _intrude_chain, damages=True, seconds=1, modes=_IPTABLES),
    Fault("flush-ipset", _flush_ipset, damages=True, seconds=1, modes=_IPTABLES),
)
