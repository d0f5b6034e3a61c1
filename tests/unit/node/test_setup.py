"""Node parameters, in directories that stand in for /proc and /sys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from svcproxy.config import Config
from svcproxy.node.setup import NodeParameters

CONNTRACK = "sys/net/netfilter/nf_conntrack_"


class Tree:
    """Directories in place of ``/proc`` and ``/sys``; writes are detected by their times."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        for name, value in {
            "max": 65536,
            "tcp_timeout_established": 432000,
            "tcp_timeout_close_wait": 60,
            "tcp_be_liberal": 0,
            "udp_timeout": 30,
            "udp_timeout_stream": 120,
        }.items():
            self._put(self.proc / f"{CONNTRACK}{name}", value)
        self.hash_size = self._put(self.sys / "module/nf_conntrack/parameters/hashsize", 16384)
        self.oom = self._put(self.proc / "self/oom_score_adj", 0)

    @staticmethod
    def _put(path: Path, value: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
        return path

    def __getitem__(self, name: str) -> int:
        return int((self.proc / f"{CONNTRACK}{name}").read_text())

    def __setitem__(self, name: str, value: int) -> None:
        self._put(self.proc / f"{CONNTRACK}{name}", value)

    def lose(self, name: str) -> None:
        (self.proc / f"{CONNTRACK}{name}").unlink()

    def set_up(self, cpus: int = 8, **flags: Any) -> list[Any]:
        with capture_logs() as logs:
            NodeParameters(self.proc, self.sys, cpus).set_up(Config(**flags))
        return logs

    def changed(self, action: Callable[[], object]) -> list[str]:
        """The names of the files that were written."""
        files = [f for f in self.proc.parent.rglob("*") if f.is_file()]
        before = {f: f.stat().st_mtime_ns for f in files}
        action()
        return sorted(f.name for f in files if f.stat().st_mtime_ns != before[f])


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_different_values_are_set(tree: Tree) -> None:
    tree.set_up(conntrack_tcp_be_liberal=True, conntrack_udp_timeout=10.0)
    assert tree["max"] == 262144
    assert int(tree.hash_size.read_text()) == 65536
    assert tree["tcp_timeout_established"] == 86400, "lowered, as kube-proxy does"
    assert tree["tcp_timeout_close_wait"] == 3600, "raised"
    assert tree["tcp_be_liberal"] == 1
    assert tree["udp_timeout"] == 10
    assert tree["udp_timeout_stream"] == 120, "no flag is given"
    assert int(tree.oom.read_text()) == -999


def test_correct_values_are_not_written(tree: Tree) -> None:
    tree.set_up()
    assert tree.changed(tree.set_up) == []


def test_the_hash_table_only_grows(tree: Tree) -> None:
    tree.hash_size.write_text("1048576\n")
    tree.set_up()
    assert tree.hash_size.read_text() == "1048576\n"


def test_the_hash_table_is_unchanged_without_a_limit(tree: Tree) -> None:
    tree.set_up(conntrack_max_per_core=0)
    assert tree["max"] == 65536
    assert tree.hash_size.read_text() == "16384\n"


def test_a_missing_parameter_is_reported_with_a_remedy_and_the_others_are_set(tree: Tree) -> None:
    tree.lose("max")
    (warning,) = [line for line in tree.set_up() if line["log_level"] == "warning"]
    assert warning["sysctl"] == "net.netfilter.nf_conntrack_max"
    assert warning["wanted"] == 262144
    assert "nf_conntrack" in warning["remedy"]
    assert tree["tcp_timeout_close_wait"] == 3600
    assert tree.hash_size.read_text() == "16384\n", "useless without the limit"


def test_unexpected_contents_are_reported(tree: Tree) -> None:
    (tree.proc / f"{CONNTRACK}max").write_text("unlimited\n")
    warnings = [line for line in tree.set_up() if line["log_level"] == "warning"]
    assert [w["sysctl"] for w in warnings] == ["net.netfilter.nf_conntrack_max"]
