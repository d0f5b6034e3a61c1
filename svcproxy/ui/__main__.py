"""The program of the page process: ``python -m svcproxy.ui SOCKET``; the daemon starts it.

It lowers its own priority before it loads anything, so that it never delays the daemon, and the
kernel ends it first if memory is short.
"""

import contextlib
import os
import sys
from pathlib import Path

_NICE = 10
_STDIN = 0


def main() -> int:
    """Serve the daemon that started this process."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    import socket  # noqa: PLC0415 - see above

    from svcproxy.ui.renderer import serve  # noqa: PLC0415

    with socket.socket(fileno=_STDIN) as channel:
        serve(channel, sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
