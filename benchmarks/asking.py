"""A client that asks a daemon for everything, again and again: ``python -m benchmarks.asking``."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

from svcproxy.admin.client import AdminClient
from svcproxy.model.names import Kind
from testbed.daemon import METRICS_PORT
from testbed.netns import NetNS
from testbed.waiting import eventually

CLIENT, SHOW, PAGE = "client", "show", "page"
ASKERS = (CLIENT, SHOW, PAGE)
"""``client`` only receives and decodes, so it asks as often as the daemon answers; ``show`` runs
``svcproxy show -o json``; ``page`` opens the overview and a search on ``/ui``."""

_NICE = 10  # as the commands
_SECONDS = 60.0


@contextlib.contextmanager
def asking(netns: NetNS, path: Path, asker: str, rounds: Path) -> Iterator[None]:
    """Ask during the block; it begins after the first answer.

    Args:
        netns: where the client runs.
        path: the admin socket.
        asker: one of ``ASKERS``.
        rounds: gets a byte for each time that everything was received.
    """
    before = rounds.stat().st_size if rounds.exists() else 0
    command = [sys.executable, "-m", "benchmarks.asking", asker, str(path), str(rounds)]
    process = netns.popen(command)
    try:
        eventually(
            lambda: rounds.exists() and rounds.stat().st_size > before,
            "an answer of the daemon",
            timeout=_SECONDS,
        )
        yield
        assert process.poll() is None, "the client that asks the daemon has failed"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main(asker: str, path: str, rounds: str) -> None:
    """Ask until SIGTERM."""
    # Commands have a normal priority even if the rest of the benchmark runs under chrt.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(_NICE)
    with Path(rounds).open("ab", buffering=0) as done:
        while True:
            if asker == SHOW:
                _show(path)
            elif asker == PAGE:
                _pages()
            else:
                _receive(AdminClient(path))
            done.write(b".")


def _receive(client: AdminClient) -> None:
    client.status()
    for kind in Kind:
        for _ in client.objects(kind):
            pass


def _show(path: str) -> None:
    command = [sys.executable, "-m", "svcproxy", "show", "-o", "json", f"--socket={path}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _pages() -> None:
    for page in ("/ui/", "/ui/?find=1"):
        with closing(HTTPConnection("127.0.0.1", METRICS_PORT, timeout=_SECONDS)) as client:
            client.request("GET", page)
            with client.getresponse() as response:
                body = response.read()
                assert response.status == HTTPStatus.OK, body


if __name__ == "__main__":
    main(*sys.argv[1:])
