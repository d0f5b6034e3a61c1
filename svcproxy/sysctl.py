"""Kernel parameters: the only module that reads and writes ``/proc/sys``.

A parameter is read before it is written, and written only if its value differs. A parameter that
cannot be set is a warning with a remedy, logged once. kube-proxy exits in this case and never
starts in a container with a read-only ``/proc/sys`` or in LXC (kubernetes#141943), although
Services work without most parameters.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from svcproxy.model.sysctl import TCP_BE_LIBERAL, Sysctl

PROC_SYS = Path("/proc/sys")

ROUTE_LOCALNET = Sysctl(
    "net/ipv4/conf/all/route_localnet",
    1,
    "node ports do not answer on 127.0.0.1",
    remedy="set it to 1, or pass --iptables-localhost-nodeports=false",
)
"""Without it, the kernel drops packets to 127.0.0.0/8 that are translated to other addresses."""

_REMEDIES = {
    errno.ENOENT: "load the kernel module that has it before svcproxy starts",
    errno.EROFS: "set it on the host, or mount /proc/sys writable (a privileged container has it)",
    errno.EACCES: "set it on the host: this container or network namespace may not",
    errno.EPERM: "set it on the host, or run as root",
    errno.EOPNOTSUPP: "set it on the host: it can only be set in the initial network namespace",
}
_CONNTRACK_MISSING = "load the kernel module nf_conntrack before svcproxy starts"

log = structlog.get_logger()

_reported: set[Path] = set()


def ensure(sysctl: Sysctl, root: Path = PROC_SYS) -> bool:
    """Set a kernel parameter if it has another value.

    Args:
        sysctl: the parameter and its value.
        root: where the parameters are.

    Returns:
        Whether the parameter has the value now. If not, a warning has been logged.
    """
    path = root / sysctl.path
    found: int | None = None
    try:
        found = int(path.read_text(encoding="ascii"))
        if found != sysctl.value:
            path.write_text(str(sysctl.value), encoding="ascii")
            log.info("sysctl.set", sysctl=sysctl.name, value=sysctl.value, before=found)
    except (OSError, ValueError) as error:
        if path not in _reported:
            _reported.add(path)
            log.warning(
                "sysctl.not_set",
                sysctl=sysctl.name,
                wanted=sysctl.value,
                present=found,
                error=reason(error),
                effect=sysctl.effect,
                remedy=sysctl.remedy or remedy(error, sysctl.path),
            )
        return False
    _reported.discard(path)
    return True


def ensure_all(sysctls: Iterable[Sysctl], root: Path = PROC_SYS) -> None:
    """Set each kernel parameter that has another value; see ``ensure``."""
    for sysctl in sysctls:
        ensure(sysctl, root)


def conntrack_is_liberal() -> bool:
    """Whether conntrack accepts TCP packets outside the window (``nf_conntrack_tcp_be_liberal``).

    A backend must not drop INVALID packets then. kube-proxy reads the parameter once, at its start.
    """
    try:
        return (PROC_SYS / TCP_BE_LIBERAL).read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False


def reason(error: OSError | ValueError) -> str:
    """Return why a parameter was not set, in the kernel's words where it gave an error number."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error)


def remedy(error: OSError | ValueError, path: str) -> str:
    """Return what the operator can do about a parameter that was not set.

    Args:
        error: the error of reading or writing it.
        path: its path below ``/proc/sys``, or its name.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT and "nf_conntrack" in path:
        return _CONNTRACK_MISSING
    return _REMEDIES.get(number or 0, "set it on the host")
