"""Runs the daemon: ``python -m svcproxy``."""

import sys

from svcproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
