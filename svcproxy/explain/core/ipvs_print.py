"""Prints IPVS mode's state as ``ipvsadm -L -n`` and ``ipset save`` do."""

from collections.abc import Iterator
from ipaddress import ip_address

from svcproxy.explain.core.iptables_rules import Sets
from svcproxy.explain.core.ipvs_rules import IpvsRuleset, VirtualServer
from svcproxy.explain.core.packet import parse_target


def server_lines(ruleset: IpvsRuleset) -> Iterator[str]:
    """Yield virtual servers with their real servers, sorted by address and port."""
    for protocol, target in sorted(ruleset.servers, key=lambda s: (parse_target(s[1]), s[0])):
        yield from server_block(protocol, target, ruleset.servers[protocol, target])


def server_block(protocol: str, target: str, server: VirtualServer) -> Iterator[str]:
    """Yield a virtual server with its real servers; connections are not counted."""
    yield f"{protocol.upper():<4} {target} {_properties(server)}"
    for real, weight in sorted(server.real, key=lambda each: parse_target(each.target)):
        yield f"  -> {real} Masq {weight} 0 0"


def _properties(server: VirtualServer) -> str:
    text = server.scheduler
    if server.flags:
        text += f" ({','.join(server.flags)})"
    if server.timeout:
        text += f" persistent {server.timeout}"
    return text


def set_lines(sets: Sets) -> Iterator[str]:
    """Yield one ``add`` command for each entry, sorted by set and entry."""
    for name in sorted(sets):
        for entry in sorted(sets[name]):
            yield f"add {name} {entry}"


def address_lines(ruleset: IpvsRuleset, interface: str = "kube-ipvs0") -> Iterator[str]:
    """Yield the commands that bind the addresses of virtual servers."""
    for address in sorted(ruleset.bound):
        yield address_command(str(ip_address(address)), interface)


def address_command(address: str, interface: str = "kube-ipvs0") -> str:
    """Return the command that binds an address."""
    return f"ip address add {address} dev {interface}"
