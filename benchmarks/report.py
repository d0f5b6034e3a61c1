"""Reports: results as tables, JSON and plots."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.figures import columns, count, median, megabytes, quantile, seconds
from benchmarks.results import Result
from benchmarks.rule_growth import Growth, growth_table
from benchmarks.targets import target_table

_ABSENT = "-"


class Machine(msgspec.Struct, frozen=True):
    """The machine on which the benchmark ran."""

    date: str
    cores: int
    processor: str
    kernel: str
    python: str
    tools: list[str]
    load: float

    @property
    def disturbed(self) -> bool:
        """The load average at the start: whether other programs were busy."""
        return self.load > 0.25 * self.cores

    def lines(self) -> list[str]:
        """Describe the machine as text."""
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
    """All results of one call of the benchmark: the content of the JSON file."""

    machine: Machine
    arguments: list[str]
    results: list[Result] = []
    growth: list[Growth] = []

    def write(self, folder: Path, *, plots: bool = True) -> Path:
        """Write the JSON file, the tables and the plots; return the path of the JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = "bench-" + "".join(c for c in self.machine.date if c.isdecimal())
        path = folder / f"{stem}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        (folder / f"{stem}.txt").write_text(self.text() + "\n", encoding="utf-8")
        if plots:
            from benchmarks.plots import write_plots  # noqa: PLC0415 - the import takes time and memory

            write_plots(self.results, folder, stem)
        return path

    def text(self) -> str:
        """Return all tables as text."""
        lines = self.machine.lines()
        if self.results:
            lines += ["", *columns(result_table(self.results))]
        targets = target_table(self.results)
        if targets:
            lines += ["", "Targets (10,000 x 5 unless said):", "", *columns(targets)]
        if self.growth:
            title = (
                "Rules that a new connection to a random Service passes (iptables mode, planned):"
            )
            lines += ["", title, ""]
            lines += columns(growth_table(self.growth))
        return "\n".join(lines)


def machine(tools: Sequence[str]) -> Machine:
    """Describe this machine; ``tools`` are the versions of the called programs."""
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
    """Return a table with one column per result."""
    head = ["", *(result.subject for result in results)]
    variants = ["", *(f"{result.mode} {result.variant}".strip() for result in results)]
    kernels = ["kernel", *(result.kernel.partition("-")[0] for result in results)]
    sizes = [
        "Services x endpoints",
        *(f"{count(r.size.services)} x {r.size.endpoints}" for r in results),
    ]
    rows = [head, variants, kernels, sizes]
    for title, figure in _ROWS:
        cells = [figure(result) or _ABSENT for result in results]
        if any(cell != _ABSENT for cell in cells):
            rows.append([title, *cells])
    return rows


def _median(values: Sequence[float]) -> str:
    return seconds(median(values)) if values else ""


def _latency(kind: str, share: float) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        values = [change.latency for change in getattr(result, kind)]
        return seconds(quantile(values, share)) if values else ""

    return figure


def _churned_cpu(result: Result) -> str:
    return f"{result.churned_cpu:.1%}" if result.churned_cpu is not None else ""


def _sent(name: str) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        if result.received is None or not getattr(result.received, name):
            return ""
        size = getattr(result.received, name)
        return megabytes(size) if size >= 1e6 else f"{size / 1e3:.1f} kB"

    return figure


def _growth(result: Result) -> str:
    if result.memory is None or not result.memory.before_endurance:
        return ""
    return f"{result.memory.growth:+.1%}"


def _per_change(result: Result) -> str:
    """Return the number of kernel operations per change, of all kinds."""
    if result.change_operations is None:
        return ""
    return ", ".join(f"{count(n)} {name}" for name, n in sorted(result.change_operations.items()))


def _connect(kind: str, share: float) -> Callable[[Result], str]:
    def figure(result: Result) -> str:
        if result.connections is None:
            return ""
        return seconds(quantile(getattr(result.connections, kind), share))

    return figure


def _restart_rules(result: Result) -> str:
    if result.restart_operations is None:
        return ""
    return count(result.restart_operations.get("rule_written", 0.0))


def _change_cpu(result: Result) -> str:
    return "" if result.change_cpu is None else seconds(result.change_cpu)


_ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("cold start: start to last Service's answer", lambda r: _median(r.cold_start)),
    ("  CPU", lambda r: _median(r.cold_start_cpu)),
    ("restart: start to end of first sync", lambda r: _median(r.restart)),
    ("  rules written", _restart_rules),
    ("change: API event to new pod's answer, p50", _latency("changes", 0.5)),
    ("  p90", _latency("changes", 0.9)),
    ("  p99", _latency("changes", 0.99)),
    ("  max", _latency("changes", 1.0)),
    ("change under churn elsewhere, p50", _latency("churned", 0.5)),
    ("  p90", _latency("churned", 0.9)),
    ("  p99", _latency("churned", 0.99)),
    ("  CPU meanwhile, of one core", _churned_cpu),
    ("change, for comparison with the next rows, p50", _latency("not_asked", 0.5)),
    ("  p90", _latency("not_asked", 0.9)),
    ("  p99", _latency("not_asked", 0.99)),
    ("change while a client asks for everything, p50", _latency("asked", 0.5)),
    ("  p90", _latency("asked", 0.9)),
    ("  p99", _latency("asked", 0.99)),
    ("  complete answers per second", lambda r: count(r.answered) if r.answered else ""),
    (
        "a change: duration of the sync, mean",
        lambda r: seconds(r.change_sync) if r.change_sync else "",
    ),
    (
        "  arrival of the event to kernel, mean",
        lambda r: seconds(r.change_applied) if r.change_applied else "",
    ),
    ("  CPU", _change_cpu),
    ("  kernel operations", _per_change),
    ("idle CPU, of one core", lambda r: f"{r.idle_cpu:.1%}"),
    ("memory after cold start", lambda r: megabytes(r.memory.started) if r.memory else ""),
    ("  after changes and idling", lambda r: megabytes(r.memory.after) if r.memory else ""),
    ("  peak", lambda r: megabytes(r.memory.peak) if r.memory else ""),
    ("  growth by very many changes elsewhere", _growth),
    ("from the API at a cold start", _sent("start")),
    ("  for each change", _sent("change")),
    ("rules in the kernel (IPv4)", lambda r: count(r.rules)),
    ("  per Service", lambda r: f"{r.rules / r.size.services:.2f}"),
    ("  chains", lambda r: count(r.chains)),
    ("rules passed by a new connection, from a pod", lambda r: _traversed(r, "from_pod")),
    ("  from outside", lambda r: _traversed(r, "from_outside")),
    ("connect and one answer, random Service, p50", _connect("service", 0.5)),
    ("  p99", _connect("service", 0.99)),
    ("  to a pod's own address, past all rules, p50", _connect("direct", 0.5)),
    ("  p99", _connect("direct", 0.99)),
    ("  to a pod, before there were rules, p50", _connect("bare", 0.5)),
    ("  p99", _connect("bare", 0.99)),
)


def _traversed(result: Result, field: str) -> str:
    return count(getattr(result.rules_traversed, field)) if result.rules_traversed else ""
