"""Removes the soak's namespaces and files after the soak has ended for any reason.

``python -m chaos.cleanup_process PID FOLDER`` waits until its standard input is closed. Only the
soak holds the other end open, and the kernel closes it even after SIGKILL. This process has its
own session, so that a signal to the soak's process group does not end it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from testbed import ROOT, netns
from testbed.cluster import PREFIX


def start(pid: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the cleanup process of a process.

    Args:
        pid: the process whose namespaces are to be removed.
        folder: the folder to remove with all its files.

    Returns:
        The cleanup process; it starts to clean up when this process ends or closes its ``stdin``.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "chaos.cleanup_process", str(pid), str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Wait until standard input is closed, then remove everything."""
    pid, folder = int(sys.argv[1]), Path(sys.argv[2])
    sys.stdin.read()
    # Only the namespaces of that process: several soaks may be running.
    if names := netns.existing(f"{PREFIX}-{pid}-"):
        netns.remove(names)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
