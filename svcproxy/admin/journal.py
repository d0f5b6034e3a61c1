"""The journal of repairs: the last ones, for people who ask what happened."""

import time
from collections import deque
from threading import Condition

from svcproxy.admin.core.protocol import Repair, Repairs
from svcproxy.limits import ADMIN_REPAIRS
from svcproxy.model.names import IPFamily
from svcproxy.sync.report import Repaired


class Journal:
    """The last repairs of all families; safe from any thread."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._repairs: deque[Repair] = deque(maxlen=ADMIN_REPAIRS)
        self._total = 0

    def add(self, family: IPFamily, repaired: Repaired) -> None:
        """Add a repair that has just been done."""
        change = repaired.change
        with self._condition:
            self._total += 1
            self._repairs.append(
                Repair(
                    number=self._total,
                    at=time.time(),
                    family=family,
                    operations=dict(repaired.operations),
                    process=change.process if change else "",
                    pid=change.pid if change else 0,
                    seconds=round(repaired.seconds, 6),
                    reported=repaired.reported,
                )
            )
            self._condition.notify_all()

    def after(self, number: int) -> Repairs:
        """Return the repairs with a higher number, oldest first."""
        with self._condition:
            later = tuple(repair for repair in self._repairs if repair.number > number)
            return Repairs(self._total, later)

    def wait(self, number: int, seconds: float) -> bool:
        """Wait until there is a repair with a higher number; return whether there is one."""
        with self._condition:
            return self._condition.wait_for(lambda: self._total > number, seconds)
