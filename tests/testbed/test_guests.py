"""Tests in User Mode Linux count like other tests: those that do not pass there fail the session."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import ROOT

pytestmark = pytest.mark.kernel

_SETTINGS = "[pytest]\nmarkers = uml: see tests/guests.py\n"
_CONFTEST = "from tests.conftest import pytest_addoption, pytest_configure\n"
_TESTS = """
import pytest
from pathlib import Path
from testbed import uml

@pytest.fixture
def broken():
    raise RuntimeError("in the set-up")

@pytest.mark.uml
def test_in_the_guest(): assert uml.inside()

@pytest.mark.uml
def test_that_fails(): assert 6 * 7 == 54

@pytest.mark.uml
def test_with_a_broken_fixture(broken): pass

@pytest.mark.uml
def test_that_is_skipped(): pytest.skip("no time")

@pytest.mark.uml
@pytest.mark.parametrize("n", [1, 2])
def test_that_switches_off(n):
    Path("/proc/sysrq-trigger").write_text("o")
    while True: pass

def test_here(): assert not uml.inside()
"""

_FIRST = """
from pathlib import Path
from testbed.waiting import eventually

def test_meets_the_other_process():
    Path("first").touch()
    eventually(Path("second").exists, timeout=60)
"""
_SECOND = """
import os, pytest
from pathlib import Path
from testbed.waiting import eventually

def test_meets_the_first_process():
    Path("second").touch()
    eventually(Path("first").exists, timeout=60)

def test_that_fails(): assert 6 * 7 == 54

def test_that_is_skipped(): pytest.skip("no time")

def test_that_ends_the_process(): os._exit(7)

def test_without_a_turn(): pass
"""


def _outcomes(folder: Path, *options: str, path: str) -> tuple[int, dict[str, list[str]]]:
    """Return the exit status of a session with the tests above, and its reports.

    For each test, these are the phases that did not pass, with the end of the message.
    """
    for name, text in (
        ("pytest.ini", _SETTINGS),
        ("conftest.py", _CONFTEST),
        ("test_it.py", _TESTS),
    ):
        (folder / name).write_text(text)
    reports = folder / "reports"
    options = ("-p", "no:cacheprovider", f"--report-to={reports}", *options)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[str]] = {}
    for line in reports.read_text().splitlines():
        report = json.loads(line)
        bad = found.setdefault(report["nodeid"].partition("::")[2], [])
        if report["outcome"] != "passed":
            bad.append(f"{report['when']} {report['outcome']}: {_message(report['longrepr'])}")
    return done.returncode, found


def _message(longrepr: str | list[Any] | dict[str, dict[str, str]]) -> str:
    if isinstance(longrepr, list):  # of a skipped test: file, line and reason
        return str(longrepr[-1])
    return longrepr if isinstance(longrepr, str) else longrepr["reprcrash"]["message"]


def test_tests_that_do_not_pass_in_the_guest_fail_here(tmp_path: Path) -> None:
    status, outcomes = _outcomes(tmp_path, path=os.environ["PATH"])
    assert status == 1
    assert outcomes.pop("test_here") == []
    assert outcomes.pop("test_in_the_guest") == []
    assert "54" in outcomes.pop("test_that_fails")[0]
    assert outcomes.pop("test_with_a_broken_fixture") == [
        "setup failed: RuntimeError: in the set-up"
    ]
    (skipped,) = outcomes.pop("test_that_is_skipped")
    assert skipped.startswith("call failed: nothing is skipped in the guest")
    (unfinished,) = outcomes.pop("test_that_switches_off[1]")
    assert unfinished.startswith("call failed: the guest did not finish this test")
    assert outcomes == {
        "test_that_switches_off[2]": ["call failed: the guest had ended, see above"]
    }


def test_a_session_whose_tests_pass_in_the_guest_passes(tmp_path: Path) -> None:
    status, outcomes = _outcomes(tmp_path, "-k", "guest", path=os.environ["PATH"])
    assert (status, outcomes) == (0, {"test_in_the_guest": []})


def test_without_user_mode_linux_its_tests_fail(tmp_path: Path) -> None:
    status, outcomes = _outcomes(tmp_path, "-k", "guest or here", path="/nowhere")
    remedy = "there is no linux.uml: ./dev setup installs user-mode-linux"
    assert (status, outcomes) == (
        1,
        {"test_here": [], "test_in_the_guest": [f"call failed: {remedy}"]},
    )


def _run_in_two_processes(folder: Path, *options: str) -> tuple[int, dict[str, list[str]]]:
    (folder / "test_1.py").write_text(_FIRST)
    (folder / "test_3.py").write_text(_SECOND)
    options = ("--processes=2", "--ignore=test_it.py", "-ra", *options)
    return _outcomes(folder, *options, path=os.environ["PATH"])


def test_two_processes_share_the_tests(tmp_path: Path) -> None:
    status, outcomes = _run_in_two_processes(tmp_path, "-k", "meets or fails or skipped")
    assert status == 1
    assert "54" in outcomes.pop("test_that_fails")[0]
    (skipped,) = outcomes.pop("test_that_is_skipped")
    assert skipped.startswith("call skipped")
    assert outcomes == {"test_meets_the_other_process": [], "test_meets_the_first_process": []}


def test_what_the_second_process_did_not_finish_fails(tmp_path: Path) -> None:
    status, outcomes = _run_in_two_processes(tmp_path, "-k", "meets or ends or turn")
    assert status == 1
    (unfinished,) = outcomes.pop("test_that_ends_the_process")
    assert unfinished.startswith("call failed: the second process did not finish this test")
    assert "status 7" in unfinished
    assert outcomes == {
        "test_meets_the_other_process": [],
        "test_meets_the_first_process": [],
        "test_without_a_turn": ["call failed: the second process had ended, see above"],
    }


def test_the_second_process_ends_at_the_first_failure(tmp_path: Path) -> None:
    status, outcomes = _run_in_two_processes(tmp_path, "-x", "-k", "meets or fails or skipped")
    assert status == 1
    assert list(outcomes) == [
        "test_meets_the_other_process",
        "test_meets_the_first_process",
        "test_that_fails",
    ]
