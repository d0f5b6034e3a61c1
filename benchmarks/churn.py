"""Background churn: replaces endpoints of Services that receive no connections."""

import random
import threading
import time
from typing import Protocol

from benchmarks.population import Population
from testbed.manifests import Object

_SEED = 11


class Server(Protocol):
    """An API server in which objects can be replaced."""

    def put(self, obj: Object) -> float:
        """Replace an object."""


class Churn:
    """Replaces one endpoint at a time, of randomly chosen ordinary Services.

    Args:
        server: the API server that has the Services.
        population: the Services.
    """

    def __init__(self, server: Server, population: Population) -> None:
        self._server = server
        self._population = population
        self._chance = random.Random(_SEED)
        self._generations: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def change(self) -> None:
        """Replace one endpoint of one Service."""
        number = self._chance.choice(self._population.ordinary)
        generation = self._generations[number] = self._generations.get(number, 0) + 1
        self._server.put(self._population.moved_slice(number, generation))

    def storm(self, changes: int) -> None:
        """Make this many changes as fast as possible."""
        for _ in range(changes):
            self.change()

    def start(self, rate: float) -> None:
        """Start a thread that makes evenly spaced changes at this rate per second."""
        self.stop()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(rate,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop making changes."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, rate: float) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self.change()
            due += 1 / rate
