"""Runs the daemon or a command: ``python -m svcproxy``."""

import sys

from svcproxy.main import main

if __name__ == "__main__":
    sys.exit(main())
