"""IPVS where this machine's kernel has none: the same benchmark in User Mode Linux."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.report import Report
from testbed import uml
from testbed.machines import MachineError

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 1200.0


def needed(mode: str) -> bool:
    """Whether the running kernel lacks what a mode needs."""
    return mode == "ipvs" and not Path("/proc/net/ip_vs").exists()


def measure(mode: str, arguments: Sequence[str], say: Callable[[str], None]) -> Report:
    """Run the benchmark in a guest and bring its report out.

    Args:
        mode: the mode to measure there.
        arguments: further arguments of the benchmark's command line.
        say: gets its messages, line by line.

    Raises:
        MachineError: there is no User Mode Linux, or the benchmark failed in it; the message
            ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="svcproxy-bench-guest-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.run", *arguments, "--modes", mode]
        command += ["--no-plots", "--growth", "", "--output", name]
        finished = uml.run(command, folder=ROOT, timeout=_SECONDS, results=folder, echo=_lines(say))
        written = sorted(folder.glob("*.json"))
        if finished.status or not written:
            raise MachineError(f"the benchmark failed in the guest:\n{finished.output}")
        return msgspec.json.decode(written[-1].read_bytes(), type=Report)


def _lines(say: Callable[[str], None]) -> Callable[[bytes], None]:
    """Collect pieces of output and pass on the lines that tell of progress."""
    rest = b""

    def echo(piece: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith("["):
                say(f"guest {text}")

    return echo
