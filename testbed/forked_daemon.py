"""The daemon as a fork of a process that has loaded it, see ``nursery.daemons``."""

import os
import sys

import watchfiles

# What the daemon loads only when it is really to run
import svcproxy.daemon
import svcproxy.kube.manifests
from svcproxy.cli import main

LOADED = (svcproxy.daemon, svcproxy.kube.manifests, watchfiles)


def start(arguments: list[str], descriptors: list[int]) -> None:
    """Be the daemon: the arguments are its flags, the descriptor is for its output."""
    (output,) = descriptors
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = ["svcproxy", *arguments]
    sys.exit(main())
