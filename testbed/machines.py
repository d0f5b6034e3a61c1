"""What other kernels have in common: they run one command, and bring out its output and status."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARE = "/run/guest"
"""Where the guest has the folder that it shares with the host; a file there brings a result out."""
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
    """The machine could not be made, or did not carry its command out."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a command on another kernel."""

    kernel: str
    """The release of the guest's kernel, as ``uname -r`` has it there."""
    status: int
    output: str


def write_start(share: Path, command: Sequence[str], folder: Path, preparation: str = "") -> None:
    """Write the script that the guest's init runs in the end: it runs the command as root.

    Args:
        share: the host's name of the shared folder.
        command: the command line.
        folder: the working folder; not below ``/run``, which the guest does not share.
        preparation: lines of shell that come first.
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
    """What became of the command; ``None`` if it did not come to its end."""
    status = read(share / "status")
    if not status:
        return None
    return Finished(read(share / "kernel").strip(), int(status), read(share / "output"))


def read(path: Path) -> str:
    """The text of a file, empty if it is missing."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
