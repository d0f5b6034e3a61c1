"""Runs the benchmark in User Mode Linux, for IPVS on machines whose kernel lacks it."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.population import Size
from benchmarks.report import Report
from benchmarks.results import Options
from testbed import uml
from testbed.machines import MachineError

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 1200.0
_MAPS = Path("/proc/sys/vm/max_map_count")
_PAGE = 4096
_SHARE = 0.8  # safety margin for memory that the estimate does not include


def needed(mode: str) -> bool:
    """Return whether the running kernel lacks a feature that a mode needs."""
    return mode == "ipvs" and not Path("/proc/net/ip_vs").exists()


def fits(size: Size, changes: int) -> bool:
    """Return whether a guest can run an API server of this size that makes so many changes.

    Each page of a process in User Mode Linux may be a separate mapping for the host's kernel,
    which kills a process with more than ``vm.max_map_count`` of them. The API server is the
    largest process: it stores objects and events.
    """
    needed = 20e6 + size.services * (4000 + 1500 * size.endpoints) + changes * 8000
    return needed < _SHARE * _PAGE * int(_MAPS.read_text())


def measure(
    mode: str,
    sizes: Sequence[Size],
    options: Options,
    arguments: Sequence[str],
    say: Callable[[str], None],
) -> Report | None:
    """Run the benchmark in a guest and return its report; ``None`` if no size fits.

    Args:
        mode: the mode to measure.
        sizes: the requested sizes.
        options: how much to measure; endurance is skipped if it does not fit.
        arguments: further arguments of the benchmark's command line.
        say: called with each line of progress.

    Raises:
        MachineError: User Mode Linux is not installed, or the benchmark failed; the message ends
            with its output.
    """
    chosen = [size for size in sizes if fits(size, 0)]
    if len(chosen) < len(sizes):
        say(f"{mode}: only {', '.join(map(str, chosen))} for a guest: see vm.max_map_count")
    if not chosen:
        return None
    endures = all(fits(size, options.storm(size)) for size in chosen)
    if not endures:
        say(f"{mode}: no endurance in a guest: see vm.max_map_count")
    arguments = [
        *arguments,
        f"--sizes={','.join(map(str, chosen))}",
        f"--endurance={options.endurance if endures else 0}",
        # Both take ten times as long in a guest.
        f"--starts={min(options.starts, 1)}",
        f"--connections={min(options.connections, 300)}",
    ]
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
    """Collect pieces of output and pass on the lines that report progress."""
    rest = b""

    def echo(piece: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith("["):
                say(f"guest {text}")

    return echo
