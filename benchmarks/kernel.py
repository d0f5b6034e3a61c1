"""The kernel interface of each mode: its flags, and how to clear, list and count its objects.

To add a mode, add a class with the members of ``Iptables`` to ``Kernel`` and ``MODES``. Modes
that this machine's kernel lacks are measured in a guest, see ``guest``.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from testbed import uml
from testbed.netns import NetNS

_PATIENCE = 300.0
_TABLES = ("filter", "nat")


class Counted(msgspec.Struct, frozen=True):
    """The numbers of objects in the kernel for IPv4."""

    rules: int
    chains: int


class Iptables:
    """iptables mode in one variant."""

    mode = "iptables"
    variants = ("nft", "legacy")

    def __init__(self, variant: str) -> None:
        self.variant = variant

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags that svcproxy needs for it."""
        return {"proxy-mode": self.mode, "svcproxy-iptables-variant": self.variant}

    def prepare(self, folder: Path) -> Sequence[str]:
        """Return a prefix for the command line of other programs, so that they use this variant.

        They call ``iptables`` and related programs by their plain names; links with these names
        are created in ``folder``.
        """
        for family in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                program = shutil.which(f"{family}-{self.variant}{suffix}")
                if program:
                    (folder / f"{family}{suffix}").symlink_to(program)
        return ("env", f"PATH={folder}:{os.environ.get('PATH', os.defpath)}")

    def clear(self, netns: NetNS) -> None:
        """Remove all rules and chains."""
        text = "".join(f"*{table}\nCOMMIT\n" for table in (*_TABLES, "mangle"))
        for family in ("iptables", "ip6tables"):
            program = f"{family}-{self.variant}-restore"
            netns.run(program, stdin=text, timeout=_PATIENCE)

    def saved(self, netns: NetNS) -> str:
        """Return all rules for IPv4 as text."""
        program = f"iptables-{self.variant}-save"
        return "".join(
            netns.run(program, "-t", table, timeout=_PATIENCE).stdout for table in _TABLES
        )

    def count(self, saved: str) -> Counted:
        """Count what ``saved`` returned."""
        lines = saved.splitlines()
        return Counted(
            rules=sum(line.startswith("-A ") for line in lines),
            chains=sum(line.startswith(":") for line in lines),
        )

    @property
    def version(self) -> str:
        """The version of the tools."""
        program = f"iptables-{self.variant}"
        done = subprocess.run([program, "--version"], text=True, capture_output=True, check=False)
        return done.stdout.strip()


class Nftables:
    """nftables mode."""

    mode = "nftables"
    variants = ("maps",)

    def __init__(self, variant: str) -> None:
        self.variant = variant

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags that svcproxy needs for it."""
        return {"proxy-mode": self.mode}

    def prepare(self, folder: Path) -> Sequence[str]:  # noqa: ARG002 - same signature as the other modes
        """Return no prefix: there are no variants of nftables."""
        return ()

    def clear(self, netns: NetNS) -> None:
        """Remove all tables."""
        netns.run("nft", "flush", "ruleset", timeout=_PATIENCE)

    def saved(self, netns: NetNS) -> str:
        """Return all rules of all families, without the elements of sets and maps."""
        return netns.run("nft", "--terse", "list", "ruleset", timeout=_PATIENCE).stdout

    def count(self, saved: str) -> Counted:
        """Count the chains and rules in the output of ``saved``."""
        chains = rules = 0
        inside = False
        for line in saved.splitlines():
            words = line.split()
            if words[:1] == ["chain"]:
                chains, inside = chains + 1, True
            elif words == ["}"]:
                inside = False
            elif inside and words and words[0] != "type":
                rules += 1
        return Counted(rules, chains)

    @property
    def version(self) -> str:
        """The version of the tools."""
        done = subprocess.run(["nft", "--version"], text=True, capture_output=True, check=False)
        return done.stdout.strip()


class Ipvs:
    """IPVS mode; it also installs iptables rules, with the legacy variant."""

    mode = "ipvs"
    variants = ("",)

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self._iptables = Iptables("legacy")

    @property
    def flags(self) -> Mapping[str, str]:
        """The flags that svcproxy needs for it."""
        return {"proxy-mode": self.mode, "svcproxy-iptables-variant": self._iptables.variant}

    def prepare(self, folder: Path) -> Sequence[str]:
        """Return a prefix for the command line of other programs: they use legacy iptables."""
        return self._iptables.prepare(folder)

    def clear(self, netns: NetNS) -> None:
        """Remove all virtual servers, their interface, rules and sets."""
        netns.run(sys.executable, "-m", "svcproxy", "--cleanup", timeout=_PATIENCE)
        self._iptables.clear(netns)
        if uml.inside():
            # Removed real servers stay in a list for minutes, and each addition searches that
            # list, so the next run would not be a cold start. Unloading the modules clears it.
            loaded = [name for name in uml.MODULES if name.startswith(("ip_vs", "xt_ipvs"))]
            netns.run("modprobe", "-r", "-a", *sorted(loaded, key="ip_vs".__eq__))
            netns.run("modprobe", "-a", *loaded)

    def saved(self, netns: NetNS) -> str:
        """Return all rules for IPv4, and all virtual and real servers, as text."""
        return self._iptables.saved(netns) + netns.run("cat", "/proc/net/ip_vs").stdout

    def count(self, saved: str) -> Counted:
        """Count the output of ``saved``: rules, and virtual servers as chains."""
        return self._iptables.count(saved)

    @property
    def version(self) -> str:
        """The version of the tools."""
        return self._iptables.version


Kernel = Iptables | Nftables | Ipvs

MODES: Mapping[str, type[Kernel]] = {
    Nftables.mode: Nftables,
    Ipvs.mode: Ipvs,
    Iptables.mode: Iptables,
}
