"""Removes what the soak has made when the soak is gone, however it ended.

``python -m chaos.keeper PID FOLDER`` waits for the end of its standard input, which the soak alone
holds open: the kernel closes it even after SIGKILL. It runs in a session of its own, so that a
signal to the soak's process group does not end it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from testbed import ROOT, netns
from testbed.cluster import PREFIX


def start(pid: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the keeper of a process.

    Args:
        pid: the process whose namespaces are to be removed.
        folder: the folder that is to be removed with all its files.

    Returns:
        The keeper; it does its work when this process ends or closes the keeper's ``stdin``.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "chaos.keeper", str(pid), str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Wait, and remove everything."""
    pid, folder = int(sys.argv[1]), Path(sys.argv[2])
    sys.stdin.read()
    # Namespaces of that process only: several soaks may run.
    if names := netns.existing(f"{PREFIX}-{pid}-"):
        netns.remove(names)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
