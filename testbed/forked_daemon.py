"""Runs the daemon in a fork of a process that has imported it, see ``forkserver.daemons``."""

import os
import sys

import watchfiles

# Modules that the daemon imports only when it runs
import svcproxy.daemon
import svcproxy.kube.manifests
from svcproxy.cli import main

LOADED = (svcproxy.daemon, svcproxy.kube.manifests, watchfiles)


def start(arguments: list[str], descriptors: list[int]) -> None:
    """Run the daemon: the arguments are its flags, the descriptor takes its output."""
    (output,) = descriptors
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = ["svcproxy", *arguments]
    sys.exit(main())
