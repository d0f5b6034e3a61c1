"""``./dev soak``: mixed changes and faults for hours, and the checks at the end."""

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from chaos import cleanup_process, verdict
from chaos.damage import DAMAGE
from chaos.faults import FAULTS, Fault
from chaos.options import arguments, settings
from chaos.traffic import Excuse
from chaos.verdict import Check
from chaos.world import Settings, World
from testbed.cluster import cleanup_stale
from testbed.daemon import DaemonError
from testbed.netns import NetnsError
from testbed.traffic import TrafficError

_SAMPLE_EVERY = 5.0
_MINUTE = 60.0
_RECOVERY = 150.0
_REPORTED_FAILURES = 100
_GIVE_UP_AFTER = 3
_REPAIRS = "svcproxy_drift_repairs_total"


@dataclass(frozen=True)
class Struck:
    """An injected fault; ``recovered`` is the time to recovery in seconds, -1 if there was none."""

    name: str
    at: float
    lasted: float
    recovered: float


@dataclass(frozen=True)
class Minute:
    """The figures of a progress line."""

    minutes: float
    uptime: float
    changes: int
    faults: int
    rss_mb: float
    descriptors: int
    threads: int
    repairs: int
    failed: int
    excused: int
    log_lines: int
    slowest: float

    def __str__(self) -> str:
        return (
            f"{self.minutes:6.1f} min  up {self.uptime / 60:5.1f} min  changes {self.changes}"
            f"  faults {self.faults}  RSS {self.rss_mb:.1f} MB  fds {self.descriptors}"
            f"  threads {self.threads}  repairs {self.repairs}  failed {self.failed}"
            f" (+{self.excused} while damaged)  log {self.log_lines}/min"
            f"  converged within {self.slowest:.1f} s"
        )


class Soak:
    """One soak.

    Args:
        settings: its settings.
        folder: a folder for temporary files.
        keep_log: the file for the daemon's log, if it is to be kept.
    """

    def __init__(self, settings: Settings, folder: Path, keep_log: Path | None = None) -> None:
        self.settings = settings
        self._keep_log = keep_log
        self.world = World(settings, folder)
        self.struck: list[Struck] = []
        self.minutes: list[Minute] = []
        self.quiet: list[float] = []
        """Convergence times without a fault, in seconds."""
        self._chance = random.Random(f"{settings.seed}-faults")
        self._began = time.monotonic()
        self._recent: deque[float] = deque()
        self._log_position = 0

    def run(self) -> list[Check]:
        """Run it to its end; return the results of the checks.

        Raises:
            DaemonError, NetnsError, TrafficError: the cluster could not be built or has failed.
        """
        world = self.world
        try:
            world.build()
            verdict.settle(world)
            world.traffic.start()
            self._began = time.monotonic()
            threads = [
                threading.Thread(target=body, name=name, daemon=True)
                for name, body in (
                    ("churn", world.churn),
                    ("foreign", self._disturb),
                    ("observer", self._observe),
                )
            ]
            for thread in threads:
                thread.start()
            self._strike_until_the_end()
            world.stopping.set()
            for thread in threads:
                thread.join(30.0)
            return list(self._judge())
        finally:
            if self._keep_log is not None:
                text = "".join(f"{line}\n" for line in world.daemon.logs())
                self._keep_log.write_text(text, encoding="utf-8")
            world.close()

    def figures(self, checks: Sequence[Check]) -> dict[str, Any]:
        """Return all results, to be written to a file."""
        world = self.world
        recovered = [struck.recovered for struck in self.struck]
        return {
            "settings": {**asdict(self.settings), "without": sorted(self.settings.without)},
            "seconds": round(time.monotonic() - self._began, 1),
            "changes": world.changes,
            "hostile_changes": world.hostile_changes,
            "connections": world.traffic.counts.made,
            "connections_failed": len(world.traffic.counts.failures),
            "connections_failed_while_damaged": world.traffic.counts.excused,
            "failures": [
                {**asdict(failure), "at": round(failure.at - self._began, 3)}
                for failure in world.traffic.counts.failures[:_REPORTED_FAILURES]
            ],
            "repairs": world.metric(_REPAIRS),
            "converged_p50": _rounded(statistics.median(self.quiet)) if self.quiet else None,
            "converged_max": _rounded(max(self.quiet, default=0.0)),
            "recovered_max": _rounded(max(recovered, default=0.0)),
            "log_lines": len(world.daemon.logs()) if world.daemon.running else 0,
            "faults": [asdict(struck) for struck in self.struck],
            "minutes": [asdict(minute) for minute in self.minutes],
            "processes": [
                {"number": number, **asdict(figures)}
                for number, figures in verdict.steady_figures(world)
            ],
            "checks": [asdict(check) for check in checks],
        }

    # --- Faults ------------------------------------------------------------------------------

    def _strike_until_the_end(self) -> None:
        ends = self._began + self.settings.seconds
        missed = 0
        while (left := ends - time.monotonic()) > 0 and missed < _GIVE_UP_AFTER:
            self._wait(min(left, self._chance.uniform(0.4, 1.6) * self.settings.gap))
            fault = self._choose(ends - time.monotonic())
            if fault is not None:
                missed = 0 if self._strike(fault) else missed + 1
        if missed:
            self.world.trouble.append(f"given up after {missed} faults without recovery")

    def _wait(self, seconds: float) -> None:
        """Wait, and measure how long changes take meanwhile."""
        until = time.monotonic() + seconds
        while not self.world.stopping.wait(max(0.0, min(3.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return
            if (taken := self._converge(_RECOVERY)) is not None:
                self.quiet.append(taken)

    def _choose(self, left: float) -> Fault | None:
        settings = self.settings
        first_half = left > settings.seconds / 2
        possible = [
            fault
            for fault in (*FAULTS, *DAMAGE)
            if fault.name not in settings.without
            and (not fault.modes or settings.variant in fault.modes)
            and (not fault.kills or first_half or settings.kill_throughout)
            and 2 * fault.seconds < left
        ]
        if not possible:
            return None
        (chosen,) = self._chance.choices(possible, [fault.weight for fault in possible])
        return chosen

    def _strike(self, fault: Fault) -> bool:
        """Inject a fault and wait for recovery; return whether it was in time."""
        world = self.world
        began = time.monotonic()
        excuse = Excuse(fault.name, began)
        if fault.damages:
            world.traffic.excuses.append(excuse)
        try:
            fault.strike(world, self._chance)
        except (
            DaemonError,
            TrafficError,
            NetnsError,
            subprocess.SubprocessError,
            OSError,
        ) as error:
            world.trouble.append(f"{fault.name}: {error}")
        over = time.monotonic()
        well = self._served_again(fault) and self._converge(_RECOVERY) is not None
        excuse.ended = time.monotonic()
        world.server.unmute()
        recovered = excuse.ended - over if well else -1.0
        if not well:
            world.trouble.append(f"{fault.name}: not recovered within {_RECOVERY:g} s")
        self.struck.append(Struck(fault.name, began - self._began, over - began, recovered))
        return well

    def _served_again(self, fault: Fault) -> bool:
        if not fault.damages:
            return True
        until = time.monotonic() + _RECOVERY
        while not self.world.traffic.all_served():
            if time.monotonic() > until or self.world.stopping.wait(0.1):
                return False
        return True

    def _converge(self, limit: float) -> float | None:
        try:
            seconds = self.world.probe.move(limit)
        except (TimeoutError, TrafficError) as error:
            self.world.trouble.append(f"a change did not take effect: {error}")
            return None
        self._recent.append(seconds)
        return seconds

    # --- Beside the faults -------------------------------------------------------------------

    def _disturb(self) -> None:
        """Change tables of another program continuously."""
        run = self.world.node.netns.run
        legacy = self.settings.variant == "legacy"
        while not self.world.stopping.wait(2.0):
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                if legacy:
                    run("iptables-legacy", "-w", "5", "-t", "nat", "-N", "FOREIGN", check=False)
                    run("iptables-legacy", "-w", "5", "-t", "nat", "-X", "FOREIGN", check=False)
                else:
                    number = self._log_position % 250
                    script = f"add table ip foreign\nadd chain ip foreign c{number}\n"
                    run("nft", "-f", "-", stdin=script, check=False)
                    run("nft", "delete", "table", "ip", "foreign", check=False)

    def _observe(self) -> None:
        next_line = self._began + _MINUTE
        every = min(_SAMPLE_EVERY, self.settings.seconds / 60)
        while not self.world.stopping.wait(every):
            self.world.look()
            if time.monotonic() >= next_line:
                next_line += _MINUTE
                self._print_progress()

    def _print_progress(self) -> None:
        world, generation = self.world, self.world.generation
        generation.scrape(world.daemon)
        last = generation.samples[-1] if generation.samples else None
        lines = len(world.daemon.logs())
        slowest = max(list(self._recent), default=0.0)
        self._recent.clear()
        minute = Minute(
            minutes=round((time.monotonic() - self._began) / 60, 1),
            uptime=round(time.monotonic() - generation.began, 1),
            changes=world.changes,
            faults=len(self.struck),
            rss_mb=_rounded(last.rss / (1 << 20)) if last else 0.0,
            descriptors=last.descriptors if last else 0,
            threads=last.threads if last else 0,
            repairs=int(world.metric(_REPAIRS)),
            failed=len(world.traffic.counts.failures),
            excused=world.traffic.counts.excused,
            log_lines=lines - self._log_position,
            slowest=_rounded(slowest),
        )
        self._log_position = lines
        self.minutes.append(minute)
        print(minute, flush=True)

    # --- The end -----------------------------------------------------------------------------

    def _judge(self) -> Iterator[Check]:
        world = self.world
        try:
            verdict.settle(world)
            yield Check("it settles", figures=f"last change after {world.probe.seconds[-1]:.1f} s")
        except (AssertionError, TimeoutError, DaemonError, TrafficError) as error:
            yield Check("it settles", holds=False, figures=str(error))
        world.look()
        world.generation.scrape(world.daemon)
        world.traffic.stop()
        yield from verdict.process_checks(world)
        yield from verdict.run_checks(world)
        number = 80 if self.settings.seconds > 300 else 30
        yield verdict.answers_check(world, number)
        try:
            yield verdict.restart_check(world)
        except (AssertionError, DaemonError) as error:
            yield Check("a restart writes nothing", holds=False, figures=str(error))


def _rounded(number: float) -> float:
    return round(number, 2)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run a soak; return the exit status."""
    chosen = arguments()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        cleanup_stale()
        with _kept_folder() as folder:
            soak = Soak(settings(chosen), folder, chosen.log)
            print(f"soak: {soak.settings}", flush=True)
            checks = soak.run()
    except KeyboardInterrupt:
        print("soak: interrupted; everything is removed", flush=True)
        return 130
    _summary(soak, checks)
    if chosen.json:
        chosen.json.write_text(json.dumps(soak.figures(checks), indent=1) + "\n", encoding="utf-8")
    return 0 if all(check.holds for check in checks) else 1


@contextlib.contextmanager
def _kept_folder() -> Iterator[Path]:
    """Yield a folder for all temporary files; at the end, remove it and all namespaces."""
    folder = Path(tempfile.gettempdir(), f"svcproxy-soak-{os.getpid()}")
    guard = cleanup_process.start(os.getpid(), folder)
    before = tempfile.tempdir
    try:
        folder.mkdir(mode=0o700)
        tempfile.tempdir = str(folder)
        yield folder
    finally:
        tempfile.tempdir = before
        guard.communicate()


def _summary(soak: Soak, checks: Sequence[Check]) -> None:
    by_name = Counter(struck.name for struck in soak.struck)
    print("\nfault                times   recovered within (s)")
    for name, times in sorted(by_name.items()):
        worst = max(struck.recovered for struck in soak.struck if struck.name == name)
        missed = any(struck.recovered < 0 for struck in soak.struck if struck.name == name)
        print(f"{name:20} {times:5}   {worst:.1f}{'  NOT ALWAYS' if missed else ''}")
    if soak.quiet:
        print(
            f"\na change without a fault: median {statistics.median(soak.quiet):.2f} s,"
            f" longest {max(soak.quiet):.2f} s"
        )
    print()
    for check in checks:
        print(check)


if __name__ == "__main__":
    sys.exit(main())
