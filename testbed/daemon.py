"""Runs the real daemon as a process in a node's namespace."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from testbed.cluster import CLUSTER_CIDRS, Host
from testbed.forkserver import Child, daemons
from testbed.metrics import Metrics
from testbed.waiting import SLOW, eventually

PROGRAM = (sys.executable, "-m", "svcproxy")
METRICS_PORT, HEALTHZ_PORT = 10249, 10256
_PATIENCE = 90.0 if SLOW else 30.0
_SHORT = 64  # characters of a folder
_LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"


class DaemonError(Exception):
    """The daemon failed or timed out; the message ends with the last lines of its log."""


def default_flags(node: str) -> dict[str, str]:
    """Return the default flags of daemons in the test bed, by name without dashes."""
    return {
        "proxy-mode": "iptables",
        "hostname-override": node,
        "cluster-cidr": ",".join(CLUSTER_CIDRS),
        "iptables-min-sync-period": "1s",
        "metrics-bind-address": f"127.0.0.1:{METRICS_PORT}",
        "healthz-bind-address": f"0.0.0.0:{HEALTHZ_PORT}",
        "svcproxy-iptables-variant": "auto",
        # nf_conntrack_max applies to the whole machine: tests do not change it by default.
        "conntrack-max-per-core": "0",
        "oom-score-adj": "0",
    }


class Daemon:
    """A daemon on a node; as a context manager it is started, awaited and stopped.

    Args:
        node: the machine on which it runs.
        manifests: its manifests folder, or ``None`` to set another source in ``flags``.
        flags: additional or changed flags by name without dashes (``{"kubeconfig": "..."}``);
            ``None`` removes a default flag.
    """

    def __init__(
        self,
        node: Host,
        manifests: Path | None = None,
        *,
        flags: Mapping[str, str | None] | None = None,
    ) -> None:
        self.node = node
        self.program: Sequence[str] = PROGRAM
        self.may_be_forked = True
        """Whether to fork it from a fork server on kernels where starting a program is slow."""
        # The kernel limits paths of sockets to 107 bytes, which $TMPDIR may exceed. In a guest, /tmp
        # cannot be written.
        folder = tempfile.gettempdir()
        folder = folder if len(folder) < _SHORT else "/tmp"
        self.admin_socket = Path(folder, f"svcproxy-{uuid4().hex[:12]}", "admin.sock")
        """Its admin socket. Daemons of several nodes run at once, and share the file system."""
        self.flags: dict[str, str | None] = {
            **default_flags(node.name),
            "svcproxy-admin-socket": str(self.admin_socket),
        }
        if manifests is not None:
            self.flags["manifests"] = str(manifests)
        self.flags.update(flags or {})
        self._process: subprocess.Popen[bytes] | Child | None = None
        self._log: Path | None = None

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [*self.program, *self._arguments]

    @property
    def _arguments(self) -> list[str]:
        return [f"--{name}={value}" for name, value in self.flags.items() if value is not None]

    @property
    def log_file(self) -> Path:
        """The file with its output; it exists from the first ``start`` to ``close``.

        Raises:
            DaemonError: the daemon was not started.
        """
        if self._log is None:
            raise DaemonError(f"the daemon on {self.node.name} has no log: it was not started")
        return self._log

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            DaemonError: it is not running.
        """
        if self._process is None:
            raise self._error("is not running")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, ``None`` while it runs."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process without waiting for it; its log is appended to earlier ones."""
        if self.running:
            raise self._error("runs already")
        if self._log is None:
            handle, name = tempfile.mkstemp(prefix="svcproxy-", suffix=".log")
            os.close(handle)
            self._log = Path(name)
        with self._log.open("ab") as log:
            if self.may_be_forked and self.program == PROGRAM and SLOW:
                self._process = daemons().start(self._arguments, self.node.netns, [log.fileno()])
            else:
                self._process = self.node.netns.popen(self.command, output=log.fileno())

    def wait_ready(self, timeout: float = _PATIENCE, *, families: int = 2) -> float:
        """Wait until it has synced this many IP families; return the seconds waited.

        Raises:
            DaemonError: it exited, or was not ready in time.
        """
        began = time.monotonic()

        def ready() -> bool:
            if not self.running:
                raise self._error(f"ended with status {self.returncode}")
            with contextlib.suppress(DaemonError):
                synced = [s for s in self.metrics().get(_LAST_SYNC, []) if s.value > 0]
                return len(synced) >= families
            return False

        try:
            eventually(ready, timeout=timeout)
        except AssertionError as error:
            raise self._error(f"was not ready within {timeout:g} s") from error
        return time.monotonic() - began

    def stop(self, timeout: float = 5.0) -> float:
        """Stop it with SIGTERM; return the seconds that it took.

        Raises:
            DaemonError: it did not exit in time (and was killed), or its status was not 0.
        """
        process = self._running()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._error(f"did not end within {timeout:g} s of SIGTERM") from None
        if status:
            raise self._error(f"ended with status {status} after SIGTERM")
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it with SIGKILL; does nothing if it has exited."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._running().send_signal(number)

    def wait_idle(self, seconds: float) -> None:
        """Wait until the last sync of any family ended at least ``seconds`` ago."""

        def idle() -> bool:
            ends = [sample.value for sample in self.metrics().get(_LAST_SYNC, [])]
            return time.time() - max(ends) >= seconds

        eventually(idle, f"{seconds:g} s without a sync", timeout=seconds + 30.0)

    def metrics(self) -> Metrics:
        """Fetch and parse /metrics.

        Raises:
            DaemonError: there was no answer, or not with status 200.
        """
        status, body = self.node.traffic.fetch(METRICS_PORT, "/metrics")
        if status != 200:
            raise self._error(f"/metrics: status {status}: {body}")
        return Metrics.parse(body)

    def healthz(self, path: str = "/healthz") -> tuple[int, str]:
        """Fetch a health page; return HTTP status (0 without an answer) and body."""
        return self.node.traffic.fetch(HEALTHZ_PORT, path)

    def logs(self) -> list[str]:
        """Return all lines that it has logged so far."""
        if self._log is None:
            return []
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def wait_log(self, text: str, timeout: float = 5.0) -> str:
        """Wait for a log line that contains ``text`` and return it."""
        return eventually(
            lambda: next((line for line in self.logs() if text in line), ""),
            f"log line with {text!r}",
            timeout=timeout,
        )

    def close(self) -> None:
        """Kill it if it is running, and remove its log file."""
        self.kill()
        if self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None
        shutil.rmtree(self.admin_socket.parent, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"log of the daemon on {self.node.name}:\n{self._tail()}")
        self.close()

    def _running(self) -> subprocess.Popen[bytes] | Child:
        if self._process is None or self._process.poll() is not None:
            raise self._error("is not running")
        return self._process

    def _tail(self) -> str:
        return "\n".join(self.logs()[-20:]) or "(empty)"

    def _error(self, what: str) -> DaemonError:
        return DaemonError(f"the daemon on {self.node.name} {what}; its log:\n{self._tail()}")
