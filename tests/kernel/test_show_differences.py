"""``svcproxy show`` when the kernel differs from what it is meant to hold."""

import json
import sys
from typing import Any

import pytest

from tests.kernel.test_diff_command import Served, served

__all__ = ["served"]

pytestmark = pytest.mark.kernel


def show(served: Served, *arguments: str) -> str:
    command = (sys.executable, "-m", "svcproxy", "show", "--socket", str(served.socket))
    done = served.space.run(*command, "--sample", "0", *arguments, timeout=120)
    assert not done.stderr
    return done.stdout


def test_the_service_whose_objects_differ_is_named(served: Served) -> None:
    assert "kernel agrees" in show(served)
    served.damage()
    text = show(served)
    assert "kernel differs: 1 difference" in text.splitlines()[0]
    differing = {line.split()[0] for line in text.splitlines() if "no: 1 difference" in line}
    assert differing == {"default/web1:http"}
    found: Any = json.loads(show(served, "web1", "-o", "json"))
    (port,) = found["ports"]
    assert port["kernelDifferences"] == 1
    (difference,) = port["differences"]
    assert "10.244.1." in difference["desired"]
    assert found["problems"] == ["the kernel differs (1)"]
    served.resync()
    assert "kernel agrees" in show(served)
