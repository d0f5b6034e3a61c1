"""A small cluster with the daemon for each scenario, and a table of figures at the end."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from chaos.processes import sample
from chaos.world import Settings, World
from testbed import uml
from testbed.daemon import PROGRAM
from testbed.outcomes import Answer, LoadResult, Sample
from testbed.waiting import eventually

NATIVE = ("nftables", "nft", "legacy")
_SCENARIOS = Path(__file__).parent
_RATE = 5.0
_CONNECTION = 5.0
_MEGABYTE = 1 << 20
_COLUMNS = ("scenario", "variant", "recovered s", "failed", "of", "log lines", "RSS MB", "note")
FAR = 120.0
"""Seconds after which a recovery has failed, even on a busy machine."""


@dataclass
class Row:
    """The figures of one scenario."""

    scenario: str
    variant: str
    recovered: float = -1.0
    failed: int = 0
    connections: int = 0
    lines: int = 0
    rss_before: float = 0.0
    rss: float = 0.0
    note: str = ""
    last_failure: float = 0.0
    """Seconds from the end of the fault to the start of the last connection that failed."""
    failures: list[str] = field(default_factory=list)
    """Some failed connections: time, target and outcome."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the table."""
        return (
            self.scenario,
            self.variant,
            f"{self.recovered:.1f}" if self.recovered >= 0 else "never",
            str(self.failed),
            str(self.connections),
            str(self.lines),
            f"{self.rss_before:.0f} -> {self.rss:.0f}",
            self.note,
        )


ROWS: list[Sequence[str]] = []
"""The cells of each row; they are part of the tests' reports, also of those from a guest."""
_PROPERTY = "figures"


@dataclass
class Limits:
    """The limits of a scenario; generous, for a busy machine.

    Attributes:
        recovered: seconds from the end of the fault until a change is in the kernel again.
        lines: lines in the log.
        uncounted: lines with this text do not count, because the scenario itself causes them.
        megabytes: growth of the daemon's memory.
        failing: for how many seconds after the fault connections may fail, if it damages rules;
            ``None`` if none may fail at any time.
        tracebacks: whether the log may contain tracebacks, for example without free memory.
    """

    recovered: float = 60.0
    lines: int = 300
    uncounted: str | None = None
    megabytes: float = 40.0
    failing: float | None = None
    tracebacks: bool = False


@dataclass
class Scene:
    """A cluster with the daemon under test."""

    world: World
    variant: str
    properties: list[tuple[str, object]] = field(default_factory=list)
    """The rows of the current test, to be added to its report."""

    def lines(self) -> int:
        """Return how many lines the daemon has logged."""
        return len(self.world.daemon.logs())

    def megabytes(self) -> float:
        """Return the daemon's resident memory."""
        seen = sample(self.world.daemon.pid)
        return seen.rss / _MEGABYTE if seen is not None else 0.0

    def served(self) -> bool:
        """Return whether every stable Service answers now."""
        return self.world.traffic.all_served()

    @contextlib.contextmanager
    def started_with(self, *prefix: str) -> Iterator[None]:
        """Run the daemon under another command for a while."""
        daemon = self.world.daemon
        try:
            self.world.end_daemon("SIGTERM", lambda: daemon.stop(timeout=30))
            daemon.program = (*prefix, *PROGRAM)
            self.world.start_daemon()
            yield
        finally:
            daemon.program = PROGRAM
            daemon.kill()
            self.world.start_daemon()

    @contextlib.contextmanager
    def trouble(self, scenario: str, limits: Limits | None = None) -> Iterator[Row]:
        """Run continuous traffic during a fault, then check the effects of the fault."""
        limits = limits or Limits()
        row = Row(scenario, self.variant, rss_before=self.megabytes())
        lines, world = self.lines(), self.world
        loads = [
            world.cluster.host(each.dial.source).traffic.load(
                "tcp", each.dial.address, each.dial.port, rate=_RATE, timeout=_CONNECTION
            )
            for each in world.stable
        ]
        results: list[LoadResult] = []
        over = 0.0
        try:
            yield row
            over = time.monotonic()
            if limits.failing is not None:
                eventually(self.served, "service", timeout=FAR)
            world.probe.move(max(FAR, 2 * limits.recovered))
            row.recovered = time.monotonic() - over
        finally:
            results = [load.stop() for load in loads]
            row.connections = sum(result.total for result in results)
            wrong = [
                (each, self.world.stable[index].dial)
                for index, result in enumerate(results)
                for each in self._wrong(result, index)
            ]
            row.failed = len(wrong)
            row.failures = [f"{s.at - over:+.1f} s, {dial}: {s.outcome}" for s, dial in wrong[:10]]
            row.lines = self._counted(lines, limits.uncounted)
            row.rss = self.megabytes()
            self.properties.append((_PROPERTY, row.cells))
        row.last_failure = max((sample.at - over for sample, _ in wrong), default=0.0)
        self._judge(row, limits, world.daemon.logs()[lines:])

    def _counted(self, first: int, uncounted: str | None) -> int:
        logged = self.world.daemon.logs()[first:]
        return sum(uncounted is None or uncounted not in line for line in logged)

    def _wrong(self, result: LoadResult, index: int) -> list[Sample]:
        """Return the connections that were not answered by one of the Service's servers."""
        servers = self.world.stable[index].dial.servers
        return [
            s
            for s in result.samples
            if not (isinstance(s.outcome, Answer) and s.outcome.server in servers)
        ]

    def _judge(self, row: Row, limits: Limits, logged: list[str]) -> None:
        assert row.recovered <= limits.recovered, row
        if limits.failing is None:
            assert row.failed == 0, row
        else:
            assert row.last_failure <= limits.failing, row
        assert row.lines <= limits.lines, (row, logged[:20])
        assert row.rss - row.rss_before <= limits.megabytes, row
        defects = [n for n, line in enumerate(logged) if "Traceback" in line]
        assert limits.tracebacks or not defects, "\n".join(logged[defects[0] - 1 :][:30])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        variants = getattr(metafunc.module, "VARIANTS", NATIVE)
        if metafunc.definition.get_closest_marker("iptables_only"):
            variants = ("nft", "legacy")
        if metafunc.definition.get_closest_marker("nftables_only"):
            variants = ("nftables",)
        metafunc.parametrize("variant", variants, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect scenarios that are not quick, unless all are requested."""
    for item in items:
        if item.path.is_relative_to(_SCENARIOS) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
    if not config.option.all_scenarios and not uml.inside():  # a guest gets a list of tests
        out = [
            item
            for item in items
            if item.path.is_relative_to(_SCENARIOS) and item.get_closest_marker("quick") is None
        ]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if item not in set(out)]


@pytest.fixture(scope="module")
def flags() -> dict[str, str]:
    """Additional flags of the module's daemon."""
    return {}


@contextlib.contextmanager
def made(variant: str, flags: dict[str, str], services: int = 40) -> Iterator[Scene]:
    """A scene of its own."""
    with TemporaryDirectory(prefix="svcproxy-chaos-") as folder:
        settings = Settings(seconds=0, variant=variant, services=services, flags=flags)
        world = World(settings, Path(folder))
        try:
            world.build()
            world.probe.move(FAR)
            world.generation.scrape(world.daemon)
            yield Scene(world, variant)
        finally:
            world.close()


@pytest.fixture(scope="module")
def own_scene(variant: str, flags: dict[str, str]) -> Iterator[Scene]:
    with made(variant, flags) as scene:
        yield scene


@pytest.fixture
def scene(own_scene: Scene, request: pytest.FixtureRequest) -> Scene:
    """The module's scene, with the daemon running and all objects programmed."""
    world = own_scene.world
    own_scene.properties = request.node.user_properties
    if not world.daemon.running:
        world.start_daemon()
    world.probe.move(FAR)
    eventually(own_scene.served, "service", timeout=FAR)
    return own_scene


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the figures of a report."""
    if report.when == "teardown":
        ROWS.extend(cells for name, cells in report.user_properties if name == _PROPERTY)  # type: ignore[misc]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of figures."""
    if not ROWS:
        return
    terminalreporter.section("figures of the scenarios")
    rows = [_COLUMNS, *ROWS]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line(line.rstrip())
