"""The measured program: svcproxy, or another service proxy by its command line."""

import contextlib
import shlex
import signal
import time
from pathlib import Path

import msgspec

from benchmarks.kernel import Kernel
from testbed.cluster import CLUSTER_CIDRS, Node
from testbed.daemon import Daemon, DaemonError
from testbed.metrics import Metrics
from testbed.waiting import eventually

_LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
_STOP_SECONDS = 10.0


class Subject(msgspec.Struct, frozen=True):
    """A program to measure; without a command it is svcproxy.

    Attributes:
        command: a command line with the placeholders of ``fill``.
    """

    command: str = ""

    @property
    def name(self) -> str:
        """The program's name."""
        return Path(shlex.split(self.command)[0]).name if self.command else "svcproxy"

    def fill(self, **values: str) -> list[str]:
        """Return the words of the command, with placeholders such as ``{kubeconfig}`` replaced.

        Raises:
            ValueError: a placeholder is not in ``values``.
        """
        try:
            return [word.format_map(values) for word in shlex.split(self.command)]
        except (KeyError, IndexError) as error:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise ValueError(f"placeholder {error} in --command: there are {known}") from error


class Running:
    """A measured program on a node: starts and stops it, and reads its metrics."""

    def __init__(self, subject: Subject, kernel: Kernel, node: Node, folder: Path) -> None:
        flags = {**kernel.flags, "kubeconfig": str(folder / "kubeconfig")}
        self.folder = folder
        self.daemon = Daemon(node, flags=flags)
        # The start of the program is measured, so it must not be forked.
        self.daemon.may_be_forked = False
        self.began = 0.0
        self.began_wall = 0.0
        if subject.command:
            programs = folder / "programs"
            programs.mkdir()
            words = subject.fill(
                kubeconfig=flags["kubeconfig"],
                node=node.name,
                cluster_cidr=CLUSTER_CIDRS[0],
                mode=kernel.mode,
                variant=kernel.variant,
            )
            self.daemon.program = (*kernel.prepare(programs), *words)
            self.daemon.flags = {}

    def start(self) -> None:
        """Start the process; ``began`` and ``began_wall`` are the time of the start."""
        self.began, self.began_wall = time.monotonic(), time.time()
        self.daemon.start()

    def stop(self) -> None:
        """Terminate the process; kill it if that fails."""
        with contextlib.suppress(DaemonError):
            self.daemon.signal(signal.SIGTERM)
        try:
            eventually(lambda: not self.daemon.running, timeout=_STOP_SECONDS)
        except AssertionError:
            self.daemon.kill()

    def metrics(self) -> Metrics:
        """Return the metrics on kube-proxy's default port; empty without an answer."""
        try:
            return self.daemon.metrics()
        except DaemonError:
            return Metrics()

    @property
    def tells_syncs(self) -> bool:
        """Return whether /metrics has the time of the last sync."""
        return _LAST_SYNC in self.metrics()

    def first_sync(self, timeout: float) -> float:
        """Wait for the first sync of IPv4; return its end in seconds after the start.

        Raises:
            AssertionError: there was none in time.
        """

        def ended() -> float:
            self.check()
            stamps = list(self.metrics().matching(_LAST_SYNC))
            # Older releases of kube-proxy have no label for the family.
            chosen = [s for s in stamps if s.labels.get("ip_family", "IPv4") == "IPv4"]
            return max((stamp.value for stamp in chosen), default=0.0)

        # The metric has the exact time, so frequent polling is unnecessary.
        return eventually(ended, "the first sync", timeout=timeout, every=0.1) - self.began_wall

    def check(self) -> None:
        """Check that the program is running.

        Raises:
            DaemonError: it has exited.
        """
        if not self.daemon.running:
            raise DaemonError(f"it ended with status {self.daemon.returncode}")
