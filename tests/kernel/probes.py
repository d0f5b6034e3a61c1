"""Sends probes (``svcproxy trace --live``) on node1 of a stage, and looks at what they leave."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from svcproxy.commands.sources import view_of_manifests
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.probe.core.result import LiveRequest, LiveResult, SourceKind
from testbed.netns import NetNS
from testbed.waiting import PATIENCE
from tests.kernel.conftest import Offer, Stage

FAMILIES = {4: IPFamily.IPV4, 6: IPFamily.IPV6}
PROTOCOLS = {protocol.keyword: protocol for protocol in Protocol}
_MODES = {"nft": "iptables", "legacy": "iptables"}
_SNAPSHOT = (
    "nft -s list ruleset",
    "ip -o link show",
    "ip -o address show",
    "ip route show table all",
    "ip -6 route show table all",
    "ip neighbour show nud permanent",
    "ip -6 neighbour show nud permanent",
)
_LEGACY = ("iptables-legacy-save -t nat", "iptables-legacy-save -t filter")


def request(stage: Stage, family: int, address: str, port: int, **fields: Any) -> LiveRequest:
    """Return a request; ``proto`` is ``tcp`` (the default), ``udp`` or ``sctp``."""
    proto = fields.pop("proto", "tcp")
    variant = {"nft": "nft", "legacy": "legacy", "ipvs": "legacy"}.get(stage.variant, "")
    return LiveRequest(
        FAMILIES[family],
        PROTOCOLS[proto],
        address,
        port,
        mode=_MODES.get(stage.variant, stage.variant),
        iptables_variant=variant,
        **fields,
    )


def of_service(stage: Stage, offer: Offer, asked: LiveRequest) -> LiveRequest:
    """Return the request with the Service port and the settings that the daemon has."""
    flags = [f"--{name}={value}" for name, value in stage.daemon.flags.items() if value is not None]
    kept = [flag for flag in flags if not flag.startswith("--manifests=")]
    about = view_of_manifests(Path(str(stage.folder.path)), kept).families[asked.family]
    name = offer.service["metadata"]["name"]
    port = next(
        port
        for key, port in about.state.ports.items()
        if key.name == name and key.protocol is asked.protocol
    )
    return msgspec.structs.replace(asked, service_port=port, settings=about.settings)


def sources(stage: Stage, family: int) -> dict[str, Mapping[str, Any]]:
    """Return the fields of a request for each kind of source."""
    pod = {"source_kind": SourceKind.POD, "source": stage.here[1].ip(family)}
    return {
        "node": {"source_kind": SourceKind.NODE},
        "pod": pod,
        "outside": {"source_kind": SourceKind.OUTSIDE},
    }


def _command(asked: LiveRequest) -> list[str]:
    return [sys.executable, "-m", "tests.fakes.probe_process", pickle.dumps(asked).hex()]


def live(stage: Stage, asked: LiveRequest) -> LiveResult:
    """Send a probe from a process in node1; nothing may be left that cannot be removed."""
    done = stage.node.netns.run(*_command(asked), check=False, timeout=30.0 * PATIENCE)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=LiveResult)
    assert not result.left, result
    return result


def start(stage: Stage, asked: LiveRequest) -> subprocess.Popen[bytes]:
    """Start a probe in a session of its own."""
    return stage.node.netns.popen(_command(asked), output=subprocess.DEVNULL)


def interrupt(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a probe as a terminal does: to its whole group."""
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)


def processes(asked: LiveRequest) -> list[int]:
    """Return the processes that work on a request: the prober and its guardian."""
    wanted = pickle.dumps(asked).hex().encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def snapshot(stage: Stage) -> str:
    """Return the rules, links, addresses, routes, neighbours and ipsets of node1, and its processes."""
    commands = list(_SNAPSHOT)
    if stage.variant in {"legacy", "ipvs"}:
        commands[:1] = _LEGACY
    found = [f"{c}\n{_without_counters(stage.node.netns, c)}" for c in commands]
    found.append(ipsets(stage))
    return "\n".join(found)


def ipsets(stage: Stage) -> str:
    """Return the ipsets of node1 with their members, without the time that they have left."""
    text = stage.node.netns.run("ipset", "save", check=False).stdout
    lines = (line.split(" timeout ")[0] for line in text.splitlines())
    return "\n".join(sorted(line for line in lines if line.startswith("add ")))


def clients(stage: Stage, family: int) -> str:
    """Return the entries of session affinity without the time that they have left."""
    if stage.variant != "nftables":
        return ipsets(stage)
    table = "ip" if family == 4 else "ip6"
    return stage.node.netns.run("nft", "-s", "list", "map", table, "svcproxy", "affinity").stdout


def flows(space: NetNS, address: str) -> list[str]:
    """Return the connection tracking entries of a namespace that name an address."""
    family = "ipv6" if ":" in address else "ipv4"
    listed = space.run("conntrack", "-L", "-f", family, check=False).stdout
    return [line for line in listed.splitlines() if f"={address} " in line]


def _without_counters(space: NetNS, command: str) -> str:
    text = space.run(*command.split(), check=False).stdout
    lines = (line for line in text.splitlines() if not line.startswith(("#", ":")))
    # The lifetime of routes and addresses counts down; the state of a bridge follows its traffic.
    return "\n".join(
        " ".join(w for w in line.split() if w not in {"UNKNOWN", "UP"}) for line in lines
    )
