"""The results of one run, as stored in the JSON file."""

import msgspec

from benchmarks.figures import median
from benchmarks.population import Shape, Size

_TICK = 0.01  # seconds


class Options(msgspec.Struct, frozen=True):
    """How much to measure.

    Attributes:
        starts: how many cold starts and restarts to measure.
        changes: how many changes to measure.
        spacing: the seconds from the end of a change to the next one. For programs with a minimum
            interval of a second between syncs, like kube-proxy, it must exceed that interval,
            otherwise the interval is measured.
        churn: the number of background changes per second for a second round of changes.
        churned: how many changes to measure in the second round.
        asked: how many changes to measure while a client asks svcproxy for everything all the time,
            and as many in between without it; 0 for none.
        asker: how it asks, see ``benchmarks.asking``.
        endurance: how many endpoints to change as fast as possible, to measure the growth of
            memory; 0 for none.
        connections: how many connections to time.
        idle: the seconds of idling to measure; the default includes one periodic resync.
        timeout: the seconds to wait for a cold start.
    """

    starts: int = 1
    changes: int = 50
    spacing: float = 0.4
    churn: float = 50.0
    churned: int = 80
    asked: int = 0
    asker: str = "client"
    endurance: int = 100_000
    connections: int = 1000
    idle: float = 30.0
    timeout: float = 300.0

    def storm(self, size: Size) -> int:
        """The total number of endurance changes, including those before memory is sampled."""
        return self.warm_up(size) + self.endurance if self.endurance else 0

    @staticmethod
    def warm_up(size: Size) -> int:
        """The number of changes after which every Service has changed, most of them repeatedly."""
        return 5 * size.services

    def briefly(self) -> "Options":
        """Return reduced options, for sizes that have targets for the latency of changes only."""
        return msgspec.structs.replace(
            self,
            starts=min(self.starts, 1),
            changes=min(self.changes, 20),
            churned=min(self.churned, 20),
            endurance=0,
            connections=min(self.connections, 300),
            idle=min(self.idle, 5.0),
        )


class Change(msgspec.Struct, frozen=True):
    """One moved endpoint: seconds until the new one answered, and seconds of CPU time."""

    latency: float
    cpu: float


class Memory(msgspec.Struct, frozen=True):
    """Bytes of resident memory.

    Attributes:
        started: after the cold start.
        after: after all measurements.
        peak: the maximum.
        before_endurance: after the measured changes, before the many unmeasured ones.
        after_endurance: after those.
        meanwhile: after each tenth of those, while more of them were under way.
    """

    started: int
    after: int
    peak: int
    before_endurance: int = 0
    after_endurance: int = 0
    meanwhile: list[int] = []

    @property
    def growth(self) -> float:
        """The relative growth over the endurance changes; 0 without any."""
        before = self.before_endurance
        return (self.after_endurance - before) / before if before else 0.0


class Received(msgspec.Struct, frozen=True):
    """Bytes that the API server sent: at the cold start, and per change under churn."""

    start: int
    change: float


class ConnectionTimes(msgspec.Struct, frozen=True):
    """Seconds of a connection and one answer.

    Attributes:
        bare: to pods, before there were any rules.
        direct: to pods, past all rules.
        service: to random Services.
    """

    bare: list[float]
    direct: list[float]
    service: list[float]


class RulesTraversed(msgspec.Struct, frozen=True):
    """How many rules a new connection traverses: the mean over random Services."""

    from_pod: float
    from_outside: float


class Result(msgspec.Struct):
    """One program in one mode and variant, at one size; ``None`` for figures it does not report."""

    subject: str
    mode: str
    variant: str
    size: Size
    shape: Shape
    options: Options
    kernel: str = ""
    """The release of the kernel on which it ran."""
    cold_start: list[float] = []
    cold_start_cpu: list[float] = []
    restart: list[float] = []
    restart_operations: dict[str, float] | None = None
    changes: list[Change] = []
    churned: list[Change] = []
    churned_cpu: float | None = None
    """CPU time under churn, as a share of one core."""
    asked: list[Change] = []
    not_asked: list[Change] = []
    answered: float | None = None
    """How many times a second the client received everything."""
    received: Received | None = None
    endurance_seconds: float | None = None
    change_operations: dict[str, float] | None = None
    change_sync: float | None = None
    change_applied: float | None = None
    """Mean seconds from the arrival of a change's event until the kernel has it."""
    idle_cpu: float = 0.0
    memory: Memory | None = None
    rules: int = 0
    chains: int = 0
    rules_traversed: RulesTraversed | None = msgspec.field(default=None, name="passed")
    connections: ConnectionTimes | None = None

    @property
    def change_cpu(self) -> float | None:
        """CPU seconds of a change: the median, which periodic resyncs do not affect.

        User Mode Linux counts CPU time in ticks, and a single change takes zero to two of them:
        there it is the CPU time under churn, divided by the number of changes.
        """
        if not self.changes:
            return None
        spent = [change.cpu for change in self.changes]
        ticks = [each / _TICK for each in spent]
        if all(abs(number - round(number)) < 0.001 for number in ticks):
            return self.churned_cpu / self.options.churn if self.churned_cpu else None
        return median(spent)
