"""What one run found out; this is what the JSON file holds."""

import msgspec

from benchmarks.population import Shape, Size


class Options(msgspec.Struct, frozen=True):
    """How thoroughly to measure.

    Attributes:
        starts: how many cold starts and restarts to measure.
        changes: how many changes to measure.
        spacing: the seconds from the end of a change to the next one; more than the minimum
            time between two syncs (1 s), or that is measured.
        connections: how many connections to time.
        idle: the seconds of idleness to watch; the default has one periodic comparison in it.
        timeout: the seconds to wait for a cold start.
    """

    starts: int = 3
    changes: int = 15
    spacing: float = 1.3
    connections: int = 1000
    idle: float = 30.0
    timeout: float = 300.0


class Change(msgspec.Struct, frozen=True):
    """One moved endpoint: seconds until the new one answered, and of CPU time."""

    latency: float
    cpu: float


class Memory(msgspec.Struct, frozen=True):
    """Bytes: after the start, after everything, and the most there was."""

    started: int
    after: int
    peak: int


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
    cold_start: list[float] = []
    cold_start_cpu: list[float] = []
    restart: list[float] = []
    restart_operations: dict[str, float] | None = None
    changes: list[Change] = []
    change_operations: dict[str, float] | None = None
    change_sync: float | None = None
    idle_cpu: float = 0.0
    memory: Memory | None = None
    rules: int = 0
    chains: int = 0
    passed: Passed | None = None
    connections: Connections | None = None
