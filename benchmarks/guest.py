"""IPVS where this machine's kernel has none: the same benchmark in User Mode Linux."""

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
_SHARE = 0.8  # of the pages that it might have, for what was not thought of here


def needed(mode: str) -> bool:
    """Whether the running kernel lacks what a mode needs."""
    return mode == "ipvs" and not Path("/proc/net/ip_vs").exists()


def fits(size: Size, changes: int) -> bool:
    """Whether the API server of a size can make so many changes in a guest.

    Every page of a process in User Mode Linux may be a mapping of its own for this machine's
    kernel, which allows a process so many (``vm.max_map_count``); with more, it is killed. The
    API server is the largest: it keeps objects and events.
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
    """Run the benchmark in a guest and bring its report out; ``None`` if no size fits there.

    Args:
        mode: the mode to measure there.
        sizes: the sizes that are wanted.
        options: how thoroughly; endurance is left out where it does not fit.
        arguments: further arguments of the benchmark's command line.
        say: gets its messages, line by line.

    Raises:
        MachineError: there is no User Mode Linux, or the benchmark failed in it; the message
            ends with what it said.
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
        # Both take ten times as long there.
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
