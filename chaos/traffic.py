"""Connections through Services that never change, and the latency of changes."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from chaos.services import Dial, Stable
from testbed import manifests as m
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster
from testbed.outcomes import Answer, Sample
from testbed.traffic import Held, Load, TrafficError

_CHUNK = 15.0
_PATIENCE = 5.0
"""Seconds after which a connection counts as failed: a lost SYN is retransmitted after 1 and 3."""
_BEFORE = 1.0
_AFTER = 0.5


@dataclass
class Excuse:
    """A period in which connections may fail because rules were damaged."""

    fault: str
    began: float
    ended: float = float("inf")

    def covers(self, sample: Sample) -> bool:
        """Return whether a connection overlaps the period."""
        return sample.until >= self.began - _BEFORE and sample.at <= self.ended + _AFTER


@dataclass(frozen=True)
class Failure:
    """A connection that failed, or reached the wrong endpoint."""

    at: float
    dial: str
    what: str


@dataclass
class Counts:
    """The counts of connections so far."""

    made: int = 0
    excused: int = 0
    failures: list[Failure] = field(default_factory=list)
    held_checks: int = 0


class SteadyTraffic:
    """Continuous new connections to the stable Services, and one open connection to each.

    Args:
        cluster: the machines.
        services: the Services.
        rate: new connections per second, in total.
    """

    def __init__(self, cluster: Cluster, services: list[Stable], rate: float) -> None:
        self.counts = Counts()
        self.excuses: list[Excuse] = []
        self._cluster = cluster
        self._services = services
        self._rate = rate / len(services)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady traffic", daemon=True)

    def start(self) -> None:
        """Start the traffic."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the last connections."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CHUNK + 2 * _PATIENCE)

    def all_served(self) -> bool:
        """Return whether every stable Service answers now."""
        return all(
            isinstance(
                self._cluster.host(each.dial.source).traffic.connect(
                    "tcp", each.dial.address, each.dial.port, timeout=1.0
                ),
                Answer,
            )
            for each in self._services
        )

    def _run(self) -> None:
        held = [(service.dial, self._hold(service.dial)) for service in self._services]
        running: list[tuple[Dial, Load]] = []
        while not self._stop.is_set():
            begun = [(service.dial, self._load(service.dial)) for service in self._services]
            self._finish(running)
            running = begun
            held = [(dial, self._check(dial, connection)) for dial, connection in held]
            self._stop.wait(_CHUNK - _PATIENCE)
        self._finish(running)
        for _, connection in held:
            connection.close()

    def _load(self, dial: Dial) -> Load:
        traffic = self._cluster.host(dial.source).traffic
        return traffic.load(
            "tcp",
            dial.address,
            dial.port,
            rate=self._rate,
            duration=_CHUNK - _PATIENCE,
            timeout=_PATIENCE,
        )

    def _hold(self, dial: Dial) -> Held:
        traffic = self._cluster.host(dial.source).traffic
        return traffic.hold("tcp", dial.address, dial.port, timeout=_PATIENCE)

    def _check(self, dial: Dial, connection: Held) -> Held:
        """Use an open connection; return it, or a new one that replaces a broken one."""
        began = time.monotonic()
        outcome = connection.check(_PATIENCE)
        self.counts.held_checks += 1
        if isinstance(outcome, Answer):
            return connection
        if self._excused(Sample(began, outcome)):
            self.counts.excused += 1
        else:
            self.counts.failures.append(Failure(began, str(dial), f"held connection: {outcome}"))
        connection.close()
        return self._hold(dial)

    def _excused(self, sample: Sample) -> bool:
        return any(excuse.covers(sample) for excuse in self.excuses)

    def _finish(self, running: list[tuple[Dial, Load]]) -> None:
        for dial, load in running:
            try:
                result = load.stop() if self._stop.is_set() else load.wait()
            except TrafficError as error:
                self.counts.failures.append(Failure(time.monotonic(), str(dial), str(error)))
                continue
            self.counts.made += result.total
            for sample in result.samples:
                if isinstance(sample.outcome, Answer) and sample.outcome.server in dial.servers:
                    continue
                if self._excused(sample):
                    self.counts.excused += 1
                else:
                    failure = Failure(sample.at, str(dial), str(sample.outcome))
                    self.counts.failures.append(failure)


class Probe:
    """Measures the latency of changes with a Service whose endpoint moves between two pods.

    Args:
        cluster: the machines.
        server: the API server that has the Service.
    """

    ADDRESSES = ("10.96.0.10", "fd00:10:96::10")
    _SERVICE = m.service("probe", ADDRESSES, [m.port(80, name="http", target=8080)])

    def __init__(self, cluster: Cluster, server: FakeApiServer) -> None:
        self._cluster = cluster
        self._server = server
        self._turn = 0
        self.seconds: list[float] = []

    def create(self) -> None:
        """Create the Service."""
        self._server.put(self._SERVICE)
        for family in (4, 6):
            self._put(family, 0)

    def move(self, limit: float) -> float:
        """Move the endpoint of both families; return the seconds until both have moved.

        After a failed move the endpoint in the API stays at the new pod: the kernel may still have
        the old one, so moving back would measure nothing.

        Raises:
            TimeoutError: the move took longer than ``limit`` seconds.
        """
        chosen = (self._turn + 1) % 2
        began = time.monotonic()
        for family in (4, 6):
            self._put(family, chosen)
        wanted = self._cluster.pods[chosen].name
        for address in self.ADDRESSES:
            seen = Counter[str]()
            while True:
                outcome = self._cluster.client.traffic.connect("tcp", address, 80, timeout=0.5)
                if isinstance(outcome, Answer) and outcome.server == wanted:
                    break
                seen[outcome.label] += 1
                if time.monotonic() - began > limit:
                    raise TimeoutError(f"{address} not at {wanted} after {limit:g} s: {dict(seen)}")
                time.sleep(0.05)
        self._turn += 1
        seconds = time.monotonic() - began
        self.seconds.append(seconds)
        return seconds

    def _put(self, family: int, chosen: int) -> None:
        endpoint = m.endpoint(self._cluster.pods[chosen].ip(family))
        self._server.put(m.endpoint_slice(self._SERVICE, [endpoint]))
