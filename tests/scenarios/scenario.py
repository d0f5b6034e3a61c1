"""Scenario files: a header comment, then sections of input and of expected output.

A file begins with comment lines that name the behaviour which it specifies. Each section begins
with a line ``-- name --``:

``flags``
    command-line flags, one a line, besides ``--cluster-cidr`` and ``--hostname-override``.
``kernel``
    features that the kernel lacks: ``no bpf`` (``xt_bpf``) and ``no ipset``, one a line.
``objects``
    YAML documents: Services, EndpointSlices, ServiceCIDRs, and the Node if it matters.
``packets``
    one packet a line, see ``Sent``.
``show``
    words that ask for more output: ``shared`` for the rules that all Services share, ``tiers``
    for the chains of nftables mode that balance.

All other sections are output, which ``pytest tests/scenarios --regenerate`` writes.
"""

import re
from pathlib import Path
from typing import NamedTuple

from svcproxy.explain.core.packet import Packet

FOLDER = Path(__file__).parent
INPUTS = ("flags", "kernel", "objects", "packets", "show")
_SECTION = re.compile(r"^-- ([a-z0-9 ]+) --$", re.MULTILINE)
_PACKET = re.compile(r"(\S+)(?: (\S+))? -> (tcp|udp|sctp) (\S+):(\d+)(, again)?")

NODE_ADDRESSES = ("192.168.50.1", "fd00:192:168:50::1")
NODE_SUBNETS = ("192.168.50.0/24", "fd00:192:168:50::/64")
_SENDERS = {
    "pod": ("cni0", "10.244.1.9", "fd00:10:244:1::9"),
    "other-pod": ("eth0", "10.244.2.9", "fd00:10:244:2::9"),
    "client": ("eth0", "198.51.100.7", "fd00:198::7"),
    "node": ("", *NODE_ADDRESSES),
    "localhost": ("", "127.0.0.1", "::1"),
}
"""Interface and addresses; the pods are of this node and of another one."""


class Sent(NamedTuple):
    """A packet: ``pod -> tcp 10.96.0.10:80``.

    The sender is ``pod`` (of this node), ``other-pod``, ``client``, ``node`` or ``localhost``; an
    address may follow it. ``, again`` traces a second packet after the first one, with what the
    first one left in the kernel, and shows the second.
    """

    text: str
    sender: str
    packet: Packet
    again: bool


class Scenario(NamedTuple):
    """One file."""

    path: Path
    header: str
    sections: dict[str, str]

    @property
    def flags(self) -> list[str]:
        return self.sections.get("flags", "").split("\n") if self.sections.get("flags") else []

    @property
    def missing_features(self) -> frozenset[str]:
        return frozenset(self.sections.get("kernel", "").splitlines())

    @property
    def shown(self) -> set[str]:
        return set(self.sections.get("show", "").split())

    @property
    def packets(self) -> list[Sent]:
        return [_sent(line) for line in self.sections.get("packets", "").splitlines()]


def load(path: Path) -> Scenario:
    """Read a scenario."""
    header, *rest = _SECTION.split(path.read_text())
    names, texts = rest[::2], rest[1::2]
    assert len(names) == len(set(names)), f"{path}: a section appears twice"
    return Scenario(
        path, header.strip("\n"), dict(zip(names, (t.strip("\n") for t in texts), strict=True))
    )


def dump(scenario: Scenario, outputs: dict[str, str]) -> str:
    """The text of a scenario's file with these output sections; empty ones are left out."""
    inputs = {name: scenario.sections[name] for name in INPUTS if name in scenario.sections}
    parts = [scenario.header]
    parts += [f"-- {name} --\n{text}" for name, text in {**inputs, **outputs}.items() if text]
    return "\n\n".join(parts) + "\n"


def _sent(line: str) -> Sent:
    found = _PACKET.fullmatch(line)
    assert found, f"no packet: {line!r}"
    sender, source, protocol, destination, port, again = found.groups()
    destination = destination.strip("[]")
    interface, *addresses = _SENDERS[sender]
    packet = Packet(
        source=source or addresses[":" in destination],
        destination=destination,
        port=int(port),
        protocol=protocol,
        interface=interface,
    )
    return Sent(line, sender, packet, bool(again))
