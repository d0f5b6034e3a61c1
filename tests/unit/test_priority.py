"""Processes that answer questions yield to the daemon, and do not starve."""

import os
import subprocess
import sys

IDLE = """
import os
from svcproxy.priority import take_part, yield_to_others
yield_to_others()
first = os.sched_getscheduler(0), os.nice(0)
take_part()
print(first, (os.sched_getscheduler(0), os.nice(0)))
"""
STARVING = """
import os
from svcproxy.priority import yield_to_others
yield_to_others(0.2)
while os.sched_getscheduler(0) == os.SCHED_IDLE:
    pass
"""


def test_the_policy_is_idle_until_the_process_takes_part() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=60, check=True
    )
    nice = min(19, os.nice(0) + 10)
    idle, normal = (os.SCHED_IDLE, nice), (os.SCHED_OTHER, nice)
    assert done.stdout.strip() == f"{idle} {normal}"


def test_a_process_that_gets_no_time_returns_to_the_normal_policy() -> None:
    one = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "--cpu-list", one, sys.executable, "-c"]
    with subprocess.Popen([*command, "while True: pass"]) as busy:
        try:
            with subprocess.Popen([*command, STARVING]) as starving:
                try:
                    assert starving.wait(timeout=60) == 0
                finally:
                    starving.kill()
        finally:
            busy.kill()


READING = """
import os
from svcproxy.priority import reading_the_kernel, yield_to_others
yield_to_others()
with reading_the_kernel():
    inside = os.sched_getscheduler(0)
print(inside, os.sched_getscheduler(0))
"""


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_kernel_is_read_at_the_normal_policy() -> None:
    """An idle process that holds a lock of the kernel would delay the daemon."""
    assert output(sys.executable, "-c", READING) == f"{os.SCHED_OTHER} {os.SCHED_IDLE}"


def test_without_the_right_to_return_only_the_nice_value_changes() -> None:
    without = ("setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice")
    found = output(*without, sys.executable, "-c", READING)
    assert found == f"{os.SCHED_OTHER} {os.SCHED_OTHER}"
