"""Shared by ``uml`` and ``vm``: a guest runs one command and returns its output and status."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARE = "/run/guest"
"""The guest's path of the folder shared with the host, in which it writes results."""
_START = """\
export PATH={path} HOME={home} LANG=C.UTF-8 TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1
{preparation}
ip link set lo up
uname -r >{share}/kernel
cd {folder}
{command} >{share}/output 2>&1 </dev/null
echo $? >{share}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class MachineError(Exception):
    """A guest could not be started, or did not complete its command."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a command in a guest."""

    kernel: str
    """The release of the guest's kernel (``uname -r``)."""
    status: int
    output: str


def write_start(share: Path, command: Sequence[str], folder: Path, preparation: str = "") -> None:
    """Write the script with which the guest's init ends: it runs the command as root.

    Args:
        share: the host's path of the shared folder.
        command: the command line.
        folder: the working folder; not below ``/run``, which the guest does not share.
        preparation: lines of shell to run before the command.
    """
    script = _START.format(
        path=shlex.quote(os.environ.get("PATH", os.defpath)),
        home=shlex.quote(str(Path.home())),
        share=SHARE,
        preparation=preparation,
        folder=shlex.quote(str(folder)),
        command=shlex.join(command),
    )
    (share / "start").write_text(script, encoding="utf-8")


def read_finished(share: Path) -> Finished | None:
    """Return the result of the command; ``None`` if it did not end."""
    status = read(share / "status")
    if not status:
        return None
    return Finished(read(share / "kernel").strip(), int(status), read(share / "output"))


def read(path: Path) -> str:
    """Return the text of a file, empty if it is missing."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
