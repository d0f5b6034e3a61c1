"""The kernel parameters that IPVS mode needs, in the network namespace of the calling thread.

Those below ``net/ipv4/vs`` are there as soon as ``ip_vs`` is loaded. kube-proxy 1.36 sets the same
ones (``NewProxier`` in ``pkg/proxy/ipvs``).
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/proc/sys")
_REUSE = "net/ipv4/vs/conn_reuse_mode"
_REUSE_FIXED = (5, 9)
"""From here on a reused port need not wait a second (Linux 35dfb013149f); kube-proxy leaves the
parameter alone then, too."""


class Sysctl(NamedTuple):
    """A kernel parameter, its path below ``/proc/sys``, and what goes wrong with another value."""

    path: str
    value: str
    effect: str

    @property
    def name(self) -> str:
        """The parameter as ``sysctl`` spells it."""
        return self.path.replace("/", ".")


class SysctlProblem(NamedTuple):
    """A parameter that could not be set; ``found`` is empty if it could not even be read."""

    sysctl: Sysctl
    found: str
    reason: str

    def __str__(self) -> str:
        found = f" (it is {self.found})" if self.found else ""
        what = f"cannot set {self.sysctl.name} to {self.sysctl.value}{found}"
        return f"{what}: {self.reason}; {self.sysctl.effect}"


def wanted(kernel: str, *, strict_arp: bool) -> Iterator[Sysctl]:
    """The parameters to set.

    Args:
        kernel: the kernel's release, such as ``5.15.0-91-generic``.
        strict_arp: do not answer ARP requests for addresses of ``kube-ipvs0``
            (``--ipvs-strict-arp``).
    """
    yield Sysctl("net/ipv4/vs/conntrack", "1", "masquerading and source checks do not work")
    if version(kernel) < _REUSE_FIXED:
        effect = (
            "connections from a port just used before wait a second, or go to a removed endpoint"
        )
        yield Sysctl(_REUSE, "0", effect)
    effect = "clients stay with endpoints that have gone"
    yield Sysctl("net/ipv4/vs/expire_nodest_conn", "1", effect)
    effect = "clients with session affinity stay with endpoints that leave"
    yield Sysctl("net/ipv4/vs/expire_quiescent_template", "1", effect)
    yield Sysctl("net/ipv4/ip_forward", "1", "pods on other nodes cannot be reached")
    if strict_arp:
        effect = "this node answers ARP requests for virtual addresses on all of its interfaces"
        yield Sysctl("net/ipv4/conf/all/arp_ignore", "1", effect)
        yield Sysctl("net/ipv4/conf/all/arp_announce", "2", effect)


def version(kernel: str) -> tuple[int, int]:
    """The first two numbers of a kernel release; (0, 0) if it has none."""
    major, _, rest = kernel.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def ensure(sysctls: Iterable[Sysctl], root: Path = _ROOT) -> list[SysctlProblem]:
    """Set parameters that have another value; return those that could not be set."""
    problems = []
    for sysctl in sysctls:
        problem = _ensure(sysctl, root)
        if problem is not None:
            problems.append(problem)
    return problems


def _ensure(sysctl: Sysctl, root: Path) -> SysctlProblem | None:
    path = root / sysctl.path
    found = ""
    try:
        found = path.read_text(encoding="ascii").strip()
        if found == sysctl.value:
            return None
        path.write_text(sysctl.value, encoding="ascii")
    except OSError as error:
        return SysctlProblem(sysctl, found, os.strerror(error.errno or 0))
    return None
