"""The checks at the end of the soak, each with its figures."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chaos.processes import Steady, steady
from chaos.services import Dial
from chaos.world import World
from testbed.metrics import Metrics
from testbed.outcomes import Answer
from testbed.waiting import eventually

ENOUGH = 40
"""Connections after which one of three servers is still missing once in 10^6 times."""
LONG_LIFE = 900.0
"""Age in seconds after which the memory of a process must be constant."""
_GROWTH, _SHORT_GROWTH = 0.05, 0.5
_MORE_DESCRIPTORS, _MORE_THREADS = 3, 1
_SETTLING = 120.0
_DEFECTS = ("Traceback", "sync.defect", "watch.crashed", "after_sync.failed")


@dataclass(frozen=True)
class Check:
    """The result of a check: a statement, whether it holds, and figures."""

    name: str
    holds: bool = True
    figures: str = ""

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'FAILED'}  {self.name}: {self.figures}"


def operations(metrics: Metrics) -> dict[str, int]:
    """Return the daemon's counts of kernel operations, without those that are 0."""
    found = Counter[str]()
    for sample in metrics.get("svcproxy_kernel_operations_total", []):
        found[sample.labels["operation"]] += int(sample.value)
    return {name: count for name, count in found.items() if count}


def settle(world: World) -> None:
    """Wait until the daemon has programmed all objects of the API server.

    Raises:
        AssertionError, TimeoutError: it did not in time.
    """
    world.probe.move(_SETTLING)
    eventually(
        lambda: world.daemon.metrics().value("svcproxy_queue_age_seconds") == 0,
        "an empty queue",
        timeout=_SETTLING,
        every=0.5,
    )


def restart_check(world: World) -> Check:
    """Check that a restart writes nothing: the kernel has what a new process computes."""
    name = "a restart writes nothing"
    world.end_daemon("SIGTERM at the end", lambda: world.daemon.stop(timeout=30.0))
    seconds = world.start_daemon()
    world.daemon.wait_idle(2.0)  # include writes after the first sync
    written = operations(world.daemon.metrics())
    return Check(name, not written, f"{written or 'no operations'}, ready after {seconds:.1f} s")


def answers_check(world: World, number: int) -> Check:
    """Check that connections to a sample of all frontends reach the expected endpoints."""
    dials = world.population.dials()
    chosen = random.Random(world.settings.seed).sample(dials, min(number, len(dials)))
    chosen += [service.dial for service in world.stable]
    wrong = [dial for dial in chosen if _seen_wrong(world, dial)]
    if wrong:  # retry: a busy machine may have lost packets
        time.sleep(5.0)
    found = [f"{dial}: {seen}" for dial in wrong if (seen := _seen_wrong(world, dial))]
    empty = sum(not dial.servers for dial in chosen)
    figures = f"{len(chosen)} of {len(dials)} frontends dialled, {empty} of them without servers"
    if found:
        figures += f"; wrong: {len(found)}: " + "; ".join(found[:5])
    return Check("connections reach the expected endpoints", not found, figures)


def _seen_wrong(world: World, dial: Dial) -> str:
    """Return a deviation at a frontend, empty if there is none."""
    traffic = world.cluster.host(dial.source).traffic
    number = 1 if not dial.servers else ENOUGH if len(dial.servers) > 1 else 3
    if dial.sticky:
        number = 5
    timeout = 3.0 if dial.servers else 0.5
    outcomes = traffic.dial(dial.proto, dial.address, dial.port, number, timeout=timeout)
    servers = {o.server for o in outcomes if isinstance(o, Answer)}
    others = Counter(o.label for o in outcomes if not isinstance(o, Answer))
    if not dial.servers:
        return f"{servers} instead of none" if servers else ""
    right = (
        servers <= dial.servers and len(servers) == 1 if dial.sticky else servers == dial.servers
    )
    return (
        "" if right and not others else f"{servers} {dict(others)} instead of {set(dial.servers)}"
    )


def steady_figures(world: World) -> list[tuple[int, Steady]]:
    """Return the resources of each process that ran long enough, by number."""
    warm_up = min(600.0, 0.2 * world.settings.seconds)
    found = []
    for number, generation in enumerate(world.generations, 1):
        if (figures := steady(generation, warm_up)) is not None:
            found.append((number, figures))
    return found


def process_checks(world: World) -> Iterator[Check]:
    """Check memory, descriptors and threads of each process that ran long enough."""
    judged = steady_figures(world)
    if not judged:
        seconds = max(generation.seconds for generation in world.generations)
        yield Check(
            "memory is flat", figures=f"not checked: no process ran long enough ({seconds:.0f} s)"
        )
    for number, s in judged:
        who = f"process {number} ({s.seconds / 60:.0f} min)"
        limit = _GROWTH if s.seconds >= LONG_LIFE else _SHORT_GROWTH
        yield Check(
            f"memory is flat, {who}",
            s.growth <= limit,
            f"{s.warm_mb:.1f} MB after warm-up, {s.end_mb:.1f} MB at the end ({s.growth:+.1%},"
            f" limit {limit:+.0%}), slope {s.slope_mb_per_hour:+.1f} MB/h",
        )
        yield Check(
            f"descriptors and threads are constant, {who}",
            s.end_descriptors <= s.warm_descriptors + _MORE_DESCRIPTORS
            and s.end_threads <= s.warm_threads + _MORE_THREADS,
            f"descriptors {s.warm_descriptors} -> {s.end_descriptors},"
            f" threads {s.warm_threads} -> {s.end_threads}",
        )


def run_checks(world: World) -> Iterator[Check]:
    """Return the checks that need no running daemon."""
    counts = world.traffic.counts
    figures = (
        f"{len(counts.failures)} of {counts.made}, {counts.excused} more while rules were damaged"
    )
    if counts.failures:
        some = [f"{f.dial}: {f.what}" for f in counts.failures[:3]]
        figures += "; first: " + "; ".join(some)
    yield Check("no connection failed", not counts.failures, figures)
    trouble = "; ".join(world.trouble[:5]) or "none"
    yield Check("the daemon recovered from every fault", not world.trouble, f"trouble: {trouble}")
    lines = [line for line in world.daemon.logs() if any(word in line for word in _DEFECTS)]
    first = f", first: {lines[0][:300]}" if lines else ""
    yield Check("no defect was logged", not lines, f"{len(lines)} lines{first}")
