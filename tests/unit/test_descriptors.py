"""The limit of open files: raised, restored in child processes, divided."""

import resource
import subprocess
import sys

import pytest

from svcproxy import limits
from svcproxy.descriptors import DescriptorAllocation, DescriptorBudget, allocate

RAISING = '''
import resource, subprocess, sys
from svcproxy.backends.xtables.commands import _run
from svcproxy.descriptors import DESCRIPTOR_LIMIT
limit = """
import resource, time
until = time.monotonic() + 10
while resource.getrlimit(resource.RLIMIT_NOFILE)[0] != SOFT and time.monotonic() < until:
    time.sleep(0.01)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
""".replace("SOFT", sys.argv[1])
print(DESCRIPTOR_LIMIT.raise_soft())
print(_run([sys.executable, "-c", limit], None).stdout)
DESCRIPTOR_LIMIT.restore_in(2**22 - 1)  # no such process
'''


def test_the_soft_limit_is_raised_and_programs_get_the_original_one() -> None:
    command = ("prlimit", "--nofile=256:512", sys.executable, "-c", RAISING, "256")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["512", "(256, 512)"]


def test_a_sufficient_limit_is_not_changed() -> None:
    command = ("prlimit", "--nofile=512:512", sys.executable, "-c", RAISING, "512")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["512", "(512, 512)"]


@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 2**20, 2**30])
def test_the_allocation_fits_the_limit(limit: int) -> None:
    pages, checks, listeners = allocate(limit)
    assert min(pages, checks) >= 8
    assert listeners >= 0
    if listeners:
        assert 2 * pages + 2 * checks + listeners + limits.DESCRIPTORS_RESERVED <= limit
    assert pages <= limits.HTTP_CONNECTIONS
    assert checks <= limits.HEALTH_CHECK_CONNECTIONS


def test_the_allocation_of_common_limits() -> None:
    assert allocate(64) == DescriptorAllocation(8, 8, 0)
    assert allocate(256) == DescriptorAllocation(32, 32, 64)
    assert allocate(1024) == DescriptorAllocation(64, 128, 576)
    assert allocate(resource.RLIM_INFINITY).listeners > 2**30


def test_descriptors_are_acquired_completely_or_not_at_all() -> None:
    budget = DescriptorBudget(3, 256)
    assert budget.acquire(2)
    assert not budget.acquire(2)
    assert budget.acquire(1)
    budget.release(2)
    assert budget.acquire(2)
    assert "all 3 " in budget.reason
    assert budget.reason.endswith("raise RLIMIT_NOFILE of svcproxy, which is 256")
