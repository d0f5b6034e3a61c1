"""What one run found out; this is what the JSON file holds."""

import msgspec

from benchmarks.figures import median
from benchmarks.population import Shape, Size

_TICK = 0.01  # seconds


class Options(msgspec.Struct, frozen=True):
    """How thoroughly to measure.

    Attributes:
        starts: how many cold starts and restarts to measure.
        changes: how many changes to measure.
        spacing: the seconds from the end of a change to the next one. Programs that make at least
            a second pass between two syncs, like kube-proxy, need more, or that is measured.
        churn: how many endpoints change elsewhere in a second while changes are measured again.
        churned: how many changes to measure then.
        endurance: how many endpoints to change elsewhere, as fast as possible, to see what it
            does to memory; 0 for none.
        connections: how many connections to time.
        idle: the seconds of idleness to watch; the default has one periodic comparison in it.
        timeout: the seconds to wait for a cold start.
    """

    starts: int = 1
    changes: int = 50
    spacing: float = 0.4
    churn: float = 50.0
    churned: int = 80
    endurance: int = 100_000
    connections: int = 1000
    idle: float = 30.0
    timeout: float = 300.0

    def storm(self, size: Size) -> int:
        """How many changes endurance takes in all, those before memory is looked at included."""
        return self.warm_up(size) + self.endurance if self.endurance else 0

    @staticmethod
    def warm_up(size: Size) -> int:
        """After so many changes every Service has been changed, most of them several times."""
        return 5 * size.services

    def briefly(self) -> "Options":
        """Less of everything, for sizes at which nothing but times of changes is promised."""
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
    """One moved endpoint: seconds until the new one answered, and of CPU time."""

    latency: float
    cpu: float


class Memory(msgspec.Struct, frozen=True):
    """Bytes of resident memory.

    Attributes:
        started: after the cold start.
        after: after everything.
        peak: the most there was.
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
        """By what share the many changes made it grow; 0 if there were none."""
        before = self.before_endurance
        return (self.after_endurance - before) / before if before else 0.0


class Received(msgspec.Struct, frozen=True):
    """Bytes that the API server sent: at the cold start, and for each change under churn."""

    start: int
    change: float


class Connections(msgspec.Struct, frozen=True):
    """Seconds of a connection and one answer.

    Attributes:
        bare: to pods, before there were any rules.
        direct: to pods, past all rules.
        service: to random Services.
    """

    bare: list[float]
    direct: list[float]
    service: list[float]


class Passed(msgspec.Struct, frozen=True):
    """The rules that a new connection passes, the mean over random Services."""

    from_pod: float
    from_outside: float


class Result(msgspec.Struct):
    """One program, in one mode and variant, at one size; ``None`` is what it does not tell."""

    subject: str
    mode: str
    variant: str
    size: Size
    shape: Shape
    options: Options
    kernel: str = ""
    """The release of the kernel that it ran on."""
    cold_start: list[float] = []
    cold_start_cpu: list[float] = []
    restart: list[float] = []
    restart_operations: dict[str, float] | None = None
    changes: list[Change] = []
    churned: list[Change] = []
    churned_cpu: float | None = None
    """The share of one core that is used under churn."""
    received: Received | None = None
    endurance_seconds: float | None = None
    change_operations: dict[str, float] | None = None
    change_sync: float | None = None
    change_applied: float | None = None
    """Seconds from the arrival of a change's event until the kernel has it, the mean."""
    idle_cpu: float = 0.0
    memory: Memory | None = None
    rules: int = 0
    chains: int = 0
    passed: Passed | None = None
    connections: Connections | None = None

    @property
    def change_cpu(self) -> float | None:
        """Seconds of CPU time that a change costs: the median, which no periodic comparison shifts.

        User Mode Linux counts in ticks, of which a lone change takes one or two or none, whatever
        it costs: there it is the time used under churn, for each of its changes.
        """
        if not self.changes:
            return None
        spent = [change.cpu for change in self.changes]
        ticks = [each / _TICK for each in spent]
        if all(abs(number - round(number)) < 0.001 for number in ticks):
            return self.churned_cpu / self.options.churn if self.churned_cpu else None
        return median(spent)
