"""The wrapper of the daemon, with a fake program; the real daemon has its own tests."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cluster import Cluster
from testbed.daemon import Daemon, DaemonError
from testbed.metrics import Metrics

pytestmark = pytest.mark.kernel

STAND_IN = '''
import http.server, signal, sys, threading
TEXT = b"""\\
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.7e9
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 1.7e9
"""
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(TEXT)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else lambda *_: sys.exit(0))
print("flags", sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", 10249), Handler).serve_forever()
'''


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(cluster.nodes[0], tmp_path, flags={"v": "4", "proxy-mode": None})
    made.program = (sys.executable, "-c", STAND_IN)
    yield made
    made.close()


def test_it_starts_answers_and_stops(daemon: Daemon, tmp_path: Path) -> None:
    with daemon:
        assert daemon.running
        log = daemon.log_file
        assert daemon.metrics()
        line = daemon.wait_log("flags")
        assert f"--manifests={tmp_path}" in line
        assert "--hostname-override=node1" in line
        assert "--v=4" in line
        assert "proxy-mode" not in line
        assert daemon.healthz()[0] == 0
        assert daemon.stop() < 1
        assert daemon.returncode == 0
        daemon.start()
        daemon.wait_ready()
        daemon.kill()
        assert daemon.returncode == -signal.SIGKILL
        with pytest.raises(DaemonError, match="not running"):
            daemon.stop()
    assert not log.exists()
    assert daemon.logs() == []


def test_a_daemon_that_does_not_stop_is_killed(daemon: Daemon) -> None:
    daemon.program = [*daemon.program, "stubborn"]
    with daemon:
        with pytest.raises(DaemonError, match="did not end within"):
            daemon.stop(timeout=0.2)
        assert not daemon.running


def test_an_early_exit_shows_the_log(daemon: Daemon) -> None:
    daemon.program = (sys.executable, "-c", "print('no such flag'); raise SystemExit(2)")
    with pytest.raises(DaemonError, match=r"status 2; its log:\nno such flag"), daemon:
        pass


def test_the_log_is_added_to_a_failure(daemon: Daemon) -> None:
    with pytest.raises(ZeroDivisionError) as caught, daemon:
        _ = 1 / 0
    assert "flags" in caught.value.__notes__[0]


def test_histograms_are_read() -> None:
    metrics = Metrics.parse(
        "# TYPE x_seconds histogram\n"
        'x_seconds_bucket{f="4",le="0.1"} 1\nx_seconds_bucket{f="4",le="0.5"} 3\n'
        'x_seconds_bucket{f="4",le="+Inf"} 4\nx_seconds_sum{f="4"} 2.0\nx_seconds_count{f="4"} 4\n'
    )
    assert metrics.mean("x_seconds") == 0.5
    assert metrics.quantile("x_seconds", 0.5) == 0.5
    assert metrics.quantile("x_seconds", 0.25, f="4") == 0.1
    assert metrics.value("x_seconds_count", f="6") == 0
