"""Results as tables for people and as JSON for programs."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.figures import columns, count, median, megabytes, quantile, seconds
from benchmarks.passed import Growth, growth_table
from benchmarks.results import Result

_ABSENT = "-"


class Machine(msgspec.Struct, frozen=True):
    """What the figures depend on besides the program."""

    date: str
    cores: int
    processor: str
    kernel: str
    python: str
    tools: list[str]
    load: float

    @property
    def disturbed(self) -> bool:
        """Whether others were at work on the machine right before."""
        return self.load > 0.25 * self.cores

    def lines(self) -> list[str]:
        """The facts as text."""
        hardware = f"{self.cores} cores ({self.processor})"
        lines = [
            f"{self.date}, {hardware}, Linux {self.kernel}, Python {self.python}",
            ", ".join(self.tools),
        ]
        if self.disturbed:
            lines.append(
                f"The machine was busy with something else (load {self.load:.1f} at the start):"
                " expect times to be too long."
            )
        return lines


class Report(msgspec.Struct):
    """Everything that one call of the benchmark found out: the content of the JSON file."""

    machine: Machine
    arguments: list[str]
    results: list[Result] = []
    growth: list[Growth] = []

    def write(self, folder: Path) -> Path:
        """Write the JSON file and give its path."""
        folder.mkdir(parents=True, exist_ok=True)
        stamp = "".join(c for c in self.machine.date if c.isdecimal())
        path = folder / f"bench-{stamp}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        return path

    def text(self) -> str:
        """All tables."""
        lines = self.machine.lines()
        if self.results:
            lines += ["", *columns(result_table(self.results))]
        if self.growth:
            title = (
                "Rules that a new connection to a random Service passes (iptables mode, planned):"
            )
            lines += ["", title, ""]
            lines += columns(growth_table(self.growth))
        return "\n".join(lines)


def machine(tools: Sequence[str]) -> Machine:
    """Look at the machine; ``tools`` are versions of what is called."""
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        cores=os.cpu_count() or 1,
        processor=_processor(),
        kernel=platform.release(),
        python=platform.python_version(),
        tools=list(tools),
        load=os.getloadavg()[0],
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def result_table(results: Sequence[Result]) -> list[list[str]]:
    """A table with one column for each result."""
    head = ["", *(result.subject for result in results)]
    variants = ["", *(f"{result.mode} {result.variant}" for result in results)]
    sizes = [
        "Services x endpoints",
        *(f"{count(r.size.services)} x {r.size.endpoints}" for r in results),
    ]
    rows = [head, variants, sizes]
    for title, figure in _ROWS:
        cells = [figure(result) or _ABSENT for result in results]
        if any(cell != _ABSENT for cell in cells):
            rows.append([title, *cells])
    return rows


def _median(values: Sequence[float]) -> str:
    return seconds(median(values)) if values else ""


def _latency(share: float) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        values = [change.latency for change in result.changes]
        return seconds(quantile(values, share)) if values else ""

    return figure


def _connect(kind: str, share: float) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        if result.connections is None:
            return ""
        return seconds(quantile(getattr(result.connections, kind), share))

    return figure


def _operation(name: str) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        if result.change_operations is None:
            return ""
        return count(result.change_operations.get(name, 0.0))

    return figure


def _restart_rules(result: Result) -> str:
    if result.restart_operations is None:
        return ""
    return count(result.restart_operations.get("rule_written", 0.0))


def _change_cpu(result: Result) -> str:
    # The mean would have the periodic comparison in it; that is under idle CPU.
    return _median([change.cpu for change in result.changes])


_ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("cold start: start to last Service's answer", lambda r: _median(r.cold_start)),
    ("  CPU", lambda r: _median(r.cold_start_cpu)),
    ("restart: start to end of first sync", lambda r: _median(r.restart)),
    ("  rules written", _restart_rules),
    ("change: API event to new pod's answer, p50", _latency(0.5)),
    ("  p90", _latency(0.9)),
    ("  max", _latency(1.0)),
    ("  duration of the sync, mean", lambda r: seconds(r.change_sync) if r.change_sync else ""),
    ("  CPU, median", _change_cpu),
    ("  restores", _operation("restore")),
    ("  chains written", _operation("chain_written")),
    ("  rules written", _operation("rule_written")),
    ("idle CPU, of one core", lambda r: f"{r.idle_cpu:.1%}"),
    ("memory after cold start", lambda r: megabytes(r.memory.started) if r.memory else ""),
    ("  after changes and idling", lambda r: megabytes(r.memory.after) if r.memory else ""),
    ("  peak", lambda r: megabytes(r.memory.peak) if r.memory else ""),
    ("rules in the kernel (IPv4)", lambda r: count(r.rules)),
    ("  per Service", lambda r: f"{r.rules / r.size.services:.2f}"),
    ("  chains", lambda r: count(r.chains)),
    ("rules passed by a new connection, from a pod", lambda r: _passed(r, "from_pod")),
    ("  from outside", lambda r: _passed(r, "from_outside")),
    ("connect and one answer, random Service, p50", _connect("service", 0.5)),
    ("  p99", _connect("service", 0.99)),
    ("  to a pod's own address, past all rules, p50", _connect("direct", 0.5)),
    ("  p99", _connect("direct", 0.99)),
    ("  to a pod, before there were rules, p50", _connect("bare", 0.5)),
    ("  p99", _connect("bare", 0.99)),
)


def _passed(result: Result, field: str) -> str:
    return count(getattr(result.passed, field)) if result.passed else ""
