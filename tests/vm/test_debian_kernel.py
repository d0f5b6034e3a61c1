"""What this machine's kernel cannot show, on Debian's 6.1 kernel, with the very tests and files.

That is nftables mode on an older kernel, and IPVS together with nf_tables.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from testbed import ROOT, vm
from testbed.machines import Finished, MachineError

pytestmark = pytest.mark.kernel


class Machine(NamedTuple):
    """What a machine runs of tests/kernel, with the least number of tests, and how to choose them.

    Machines occupy one processor each, and work side by side.
    """

    tests: Mapping[str, int]
    chosen: Sequence[str] = ("-k", "nftables")
    modules: Sequence[str] = ()


MACHINES = (
    Machine({"test_takeover.py": 5}, ("-m", "vm"), ("ip_vs", "ip_vs_rr", "dummy")),
    Machine(
        {
            "test_cluster_ip.py": 38,
            "test_no_endpoints.py": 11,
            "test_nftables_traffic.py::test_unassigned_cluster_ips_are_dropped": 2,
            "test_invalid.py::test_an_unsolicited_answer_is_dropped": 2,
        }
    ),
    Machine({"test_affinity.py": 19, "test_drift_nftables.py": 17}),
)
LIMIT = 1500
QUIET = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # these plugins write to the tree
OPTIONS = ["--timeout", "300", "--tb", "short", "--maxfail", "5", "-q"]


@pytest.fixture(scope="module")
def kernel() -> Path:
    return vm.find_kernel("vmlinuz-6.1.*[0-9]-amd64")


@pytest.fixture(scope="module")
def machines(kernel: Path) -> Iterator[list[Future[Finished]]]:
    """The machines at work, side by side."""

    def work(machine: Machine) -> Finished:
        files = [f"tests/kernel/{name}" for name in machine.tests]
        command = [sys.executable, "-m", "pytest", *QUIET, *OPTIONS, *machine.chosen, *files]
        return vm.run(kernel, command, folder=ROOT, timeout=LIMIT, modules=machine.modules)

    with ThreadPoolExecutor(len(MACHINES)) as pool:
        yield [pool.submit(work, machine) for machine in MACHINES]


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("number", range(len(MACHINES)))
def test_all_that_is_chosen_passes_on_debians_kernel(
    machines: list[Future[Finished]], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    done = machines[number].result()
    last = done.output.strip().rpartition("\n")[2]
    with capsys.disabled():
        sys.stdout.write(f"\nguest kernel {done.kernel}: {last}\n")
    assert done.kernel.startswith("6.1."), done.kernel
    assert done.status == 0, done.output
    passed = re.search(r"(\d+) passed", last)
    assert passed, done.output
    assert int(passed[1]) >= sum(MACHINES[number].tests.values()), done.output


def test_a_command_that_fails_tells_its_status_and_output(kernel: Path) -> None:
    command = ["sh", "-c", "echo to be seen; exit 7"]
    done = vm.run(kernel, command, folder=Path("/"), timeout=100)
    assert (done.status, done.output) == (7, "to be seen\n")


def test_a_command_without_an_end_is_an_error(kernel: Path) -> None:
    with pytest.raises(MachineError, match="not done after 2 s"):
        vm.run(kernel, ["sleep", "1000"], folder=Path("/"), timeout=2)


def test_a_missing_kernel_is_an_error() -> None:
    with pytest.raises(MachineError, match="there is no /boot/vmlinuz-0"):
        vm.find_kernel("vmlinuz-0*")
