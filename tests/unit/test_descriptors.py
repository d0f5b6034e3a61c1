"""The limit of open files: raised, given back to programs, divided."""

import resource
import subprocess
import sys

import pytest

from svcproxy import limits
from svcproxy.descriptors import Share, Shares, shares

RAISING = '''
import resource, subprocess, sys
from svcproxy.backends.xtables.commands import _run
from svcproxy.descriptors import LIMIT
limit = """
import resource, time
until = time.monotonic() + 10
while resource.getrlimit(resource.RLIMIT_NOFILE)[0] != SOFT and time.monotonic() < until:
    time.sleep(0.01)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
""".replace("SOFT", sys.argv[1])
print(LIMIT.raise_soft())
print(_run([sys.executable, "-c", limit], None).stdout)
LIMIT.restore_in(2**22 - 1)  # no such process
'''


def test_the_soft_limit_is_raised_and_programs_get_the_former_one() -> None:
    command = ("prlimit", "--nofile=256:512", sys.executable, "-c", RAISING, "256")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["512", "(256, 512)"]


def test_a_limit_that_is_high_enough_needs_nothing() -> None:
    command = ("prlimit", "--nofile=512:512", sys.executable, "-c", RAISING, "512")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["512", "(512, 512)"]


@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 2**20, 2**30])
def test_the_shares_fit_the_limit(limit: int) -> None:
    pages, checks, listeners = shares(limit)
    assert min(pages, checks) >= 8
    assert listeners >= 0
    if listeners:
        assert 2 * pages + 2 * checks + listeners + limits.DESCRIPTORS_RESERVED <= limit
    assert pages <= limits.HTTP_CONNECTIONS
    assert checks <= limits.HEALTH_CHECK_CONNECTIONS


def test_the_shares_of_common_limits() -> None:
    assert shares(64) == Shares(8, 8, 0)
    assert shares(256) == Shares(32, 32, 64)
    assert shares(1024) == Shares(64, 128, 576)
    assert shares(resource.RLIM_INFINITY).listeners > 2**30


def test_a_share_is_taken_whole_or_not_at_all() -> None:
    share = Share(3, 256)
    assert share.take(2)
    assert not share.take(2)
    assert share.take(1)
    share.give(2)
    assert share.take(2)
    assert "all 3 " in share.reason
    assert share.reason.endswith("raise RLIMIT_NOFILE of svcproxy, which is 256")
