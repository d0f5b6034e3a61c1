"""Collects the parts of a bundle: from the daemon, from the kernel, and computed."""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from svcproxy import __version__
from svcproxy.admin.client import AdminClient, AdminError
from svcproxy.backends.base import Desired
from svcproxy.commands.core.names import names_of
from svcproxy.commands.programs import run_bounded
from svcproxy.commands.sources import explainer_of, view_of_daemon
from svcproxy.explain.core.diff_documents import Diff, diff
from svcproxy.explain.core.rule_files import rule_files
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.kernel_check import check
from svcproxy.explain.kernel_state import read_kernel
from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject

_TOOL_SECONDS = 20.0
_TOOL_BYTES = 16 << 20
_MODULES = re.compile(
    r"^(?:nf|nft|nfnetlink|ip|ip6|ipt|xt|x|ip_vs|br|bridge|dummy|overlay)(?:_|table|\b)"
)
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/conf/*/arp_announce",
    "net/ipv4/conf/*/arp_ignore",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/route_localnet",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/vs/*",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/forwarding",
    "net/bridge/*",
    "net/netfilter/nf_conntrack_*",
    "net/core/bpf_jit_enable",
)
_COMMANDS = {
    "kernel/iptables-nft.txt": ("iptables-nft-save", "-c"),
    "kernel/ip6tables-nft.txt": ("ip6tables-nft-save", "-c"),
    # Without -t they list only tables that exist, and load no module.
    "kernel/iptables-legacy.txt": ("iptables-legacy-save", "-c"),
    "kernel/ip6tables-legacy.txt": ("ip6tables-legacy-save", "-c"),
    "kernel/nft.txt": ("nft", "-s", "list", "ruleset"),
    "kernel/ipvsadm.txt": ("ipvsadm", "--list", "-n", "--stats"),
    "kernel/ipset.txt": ("ipset", "save"),
    "kernel/addresses.txt": ("ip", "-o", "address"),
    "kernel/routes.txt": ("ip", "route", "show", "table", "all"),
    "kernel/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "kernel/rules.txt": ("ip", "rule"),
}
_NEEDS = {"ipvsadm": Path("/proc/net/ip_vs"), "ipset": Path("/sys/module/ip_set")}
"""What exists if the kernel part of a program is loaded; the program would load it otherwise."""


class Collected(msgspec.Struct):
    """The parts of a bundle.

    Attributes:
        node: the name of the node.
        parts: texts, and values of JSON types, by the name of their file; lists become lines.
        names: the names that are hashed on request.
        errors: what could not be collected, a line each.
    """

    node: str
    parts: dict[str, Any] = {}
    names: frozenset[str] = frozenset()
    errors: tuple[str, ...] = ()

    def attempt(self, what: str, collect_part: Callable[..., None], *arguments: Any) -> None:
        """Collect a part; note the reason if it fails."""
        try:
            collect_part(*arguments)
        except (AdminError, OSError, ValueError, RuntimeError) as error:
            self.fail(what, str(error))
        except Exception as error:  # noqa: BLE001 - a bundle about a defect must survive it
            self.fail(what, f"{type(error).__name__}: {error}")

    def add(self, name: str, part: Callable[[], Any]) -> None:
        """Add a text or a value of JSON types or structs."""
        self.parts[name] = msgspec.to_builtins(part())

    def fail(self, what: str, reason: str) -> None:
        """Note that a part is missing."""
        self.errors += (f"{what}: {' '.join(reason.split())}",)


def collect(socket: str) -> Collected:
    """Collect all parts; what cannot be collected is in ``errors``.

    Args:
        socket: the path of the daemon's socket.
    """
    found = Collected(platform.node().lower())
    found.parts["version.json"] = {"svcproxy": __version__, "python": platform.python_version()}
    found.attempt("daemon", _ask_daemon, found, AdminClient(socket))
    found.attempt("kernel.txt", found.add, "kernel.txt", _kernel)
    for name, command in _COMMANDS.items():
        found.attempt(name, _run, found, name, command)
    found.names |= {found.node, platform.node()}
    return found


def _ask_daemon(found: Collected, client: AdminClient) -> None:
    status = client.status()
    found.node = status.node
    found.parts["status.json"] = msgspec.to_builtins(status)
    found.names |= {status.node}
    objects: list[ApiObject] = []
    for kind in Kind:
        found.attempt(f"objects/{kind}.jsonl", _objects, found, objects, client, kind)
    found.names |= names_of(objects)
    found.attempt("log.txt", found.add, "log.txt", client.log)
    found.attempt("metrics.txt", found.add, "metrics.txt", client.metrics)
    found.attempt("repairs.json", found.add, "repairs.json", client.repairs)
    found.attempt("desired", _desired, found, client)
    found.attempt("diff.json", found.add, "diff.json", partial(_diff, client))


def _objects(found: Collected, objects: list[ApiObject], client: AdminClient, kind: Kind) -> None:
    of_kind = list(client.objects(kind))
    objects += of_kind
    found.parts[f"objects/{kind.value}.jsonl"] = msgspec.to_builtins(of_kind)


def _desired(found: Collected, client: AdminClient) -> None:
    view = view_of_daemon(client)
    for family, about in view.families.items():
        ports = dict(sorted(about.state.ports.items()))
        desired = Desired(ports, about.settings, about.state.service_cidrs)
        for file in rule_files(explainer_of(view.mode).desired(desired), family):
            found.parts[f"desired/{family}-{file.tool}.txt"] = file.text
    found.attempt("kernel/read", _read_kernel, found, view)


def _read_kernel(found: Collected, view: NodeView) -> None:
    """Add what svcproxy itself reads: its image has none of the programs but iptables."""
    for family, state in read_kernel(view).items():
        if state.error:
            found.fail(f"kernel/read-{family}", state.error)
            continue
        for file in rule_files(explainer_of(view.mode).ruleset(state.kernel), family):
            found.parts[f"kernel/read-{family}-{file.tool}.txt"] = file.text


def _diff(client: AdminClient) -> Diff:
    checked = check(client)
    return diff(checked.view, checked.states, client.repairs())


# --- The kernel --------------------------------------------------------------------------------


def _kernel() -> str:
    lines = [f"{platform.system()} {platform.release()} {platform.version()}"]
    lines += ["", f"processors: {os.cpu_count()}", "", "modules:"]
    lines += sorted(line.split()[0] for line in _modules() if _MODULES.match(line))
    lines += ["", "sysctls:", *_sysctls()]
    return "".join(f"{line}\n" for line in lines)


def _modules() -> list[str]:
    try:
        return Path("/proc/modules").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []  # everything is built into this kernel


def _sysctls() -> Iterator[str]:
    root = Path("/proc/sys")
    for pattern in _SYSCTLS:
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(OSError):
                value = " ".join(path.read_text(encoding="ascii", errors="replace").split())
                yield f"{path.relative_to(root)} = {value}"


def _run(found: Collected, name: str, command: tuple[str, ...]) -> None:
    """Run a program that lists kernel state; a part that this machine does not have is no error."""
    program = shutil.which(command[0])
    needed = _NEEDS.get(command[0])
    if needed is not None and not needed.exists():
        return
    if program is None:
        found.fail(name, f"{command[0]} is not installed")
        return
    done = run_bounded([program, *command[1:]], seconds=_TOOL_SECONDS, limit=_TOOL_BYTES)
    if done.stdout:
        found.parts[name] = done.stdout.decode("utf-8", "replace")
    if done.timed_out:
        found.fail(name, f"{command[0]} took longer than {_TOOL_SECONDS:g} s")
    elif done.cut:
        found.fail(name, f"cut at {_TOOL_BYTES} bytes")
    elif done.code:
        found.fail(name, f"{command[0]} ended with status {done.code}: {done.stderr[-500:]}")
