"""The whole daemon runs on the recording backend, without privileges and without any programs."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.objects import endpoint_slice, service

DAEMON = """
import ctypes, sys
from svcproxy.config import Config, LogFormat
from svcproxy.daemon import run
from svcproxy.modes import mode_spec

assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
config = Config(
    manifests=sys.argv[1],
    hostname_override="node1",
    metrics_bind_address=None,
    healthz_bind_address=None,
    admin_socket="",
    logging_format=LogFormat.JSON,
    verbosity=4,
)
sys.exit(run(config, spec=mode_spec("recording")))
"""
"""Starts the daemon after giving up all capabilities."""


class Daemon:
    """A daemon in a process of its own, and its log."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", DAEMON, str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[Mapping[str, Any]] = []

    def wait_for(self, **fields: Any) -> None:
        """Read the log up to a line with these fields."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if fields.items() <= self.lines[-1].items():
                return
        pytest.fail(f"the log ended without {fields}: {self.lines}")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write(tmp_path, "10.244.1.5")
    running = Daemon(tmp_path)
    yield running
    running.process.kill()
    running.process.communicate()


def write(folder: Path, *addresses: str) -> None:
    objects = [service(), endpoint_slice(addresses=addresses)]
    new = folder / ".new"
    new.write_text("\n---\n".join(map(json.dumps, objects)))
    new.rename(folder / "objects.yaml")


def test_it_records_manifests_and_their_changes(daemon: Daemon, tmp_path: Path) -> None:
    recorded = {"event": "recorded", "family": "IPv4", "service_port": "default/web:http"}
    daemon.wait_for(**recorded, operation="service_port_added")
    daemon.wait_for(event="sync.done", family="IPv4", kind="full", service_port_added=1)
    write(tmp_path, "10.244.1.5", "10.244.1.6")
    daemon.wait_for(**recorded, operation="service_port_changed")
    daemon.wait_for(event="sync.done", family="IPv4", kind="partial", service_port_changed=1)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for(event="stopping")
    assert daemon.process.wait(10) == 0
    assert daemon.lines[0]["mode"] == "recording"
    problems = [line for line in daemon.lines if line["level"] in {"warning", "error"}]
    assert problems == []
