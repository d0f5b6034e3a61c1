"""Runs tests that need a kernel with IPVS in User Mode Linux, as if they ran in this session.

A test runs in a guest if its ``variant`` is ``ipvs`` or it is marked ``uml``. Guests boot when the
first test of the session starts and run in parallel with the session's other tests; their own
tests are reported last. There are two guests, because their tests spend much time waiting. pytest
in a guest writes its reports to a file, from which this session reads them. A test without a report
has failed, and so has a test that was skipped in the guest.

In a guest that was started by hand (``python -m testbed.uml -- .venv/bin/python -m pytest ...``),
these tests run like any others.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from testbed import uml
from testbed.machines import MachineError

GUESTS = 2
"""The maximum number of guests; the tests of a module run in the same one."""
LIMIT = 1500.0
"""Seconds that a guest may take for all of its tests."""
TEST_LIMIT = 300
"""Seconds that one test may take in a guest; starting programs is slow, and the host is busy."""
_WITHOUT = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # these write to the tree
Report = dict[str, Any]


def add_options(parser: pytest.Parser) -> None:
    """Declare the options of this module."""
    group = parser.getgroup("svcproxy")
    group.addoption(
        "--variants",
        type=lambda text: frozenset(text.split(",")),
        help="run only tests with one of these variants: nft, legacy, nftables, ipvs",
    )
    group.addoption(
        "--uml-variants",
        type=lambda text: frozenset(text.split(",")),
        default=frozenset({"ipvs"}),
        help="variants whose tests run in User Mode Linux (default: ipvs)",
    )
    group.addoption("--report-to", type=Path, help="write each test's reports to this file, too")


def variant_of(item: pytest.Item) -> str | None:
    """Return the variant with which a test runs, if it has one."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("variant") if callspec else None


class Selection:
    """Deselects tests of variants that were not requested."""

    def __init__(self, variants: frozenset[str]) -> None:
        self._variants = variants

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Deselect what has another variant, or none."""
        out = [item for item in items if variant_of(item) not in self._variants]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if variant_of(item) in self._variants]


class ReportWriter:
    """Writes every report to a file immediately, as a line of JSON."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._output = path.open("w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a report to the file."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._output.write(json.dumps(data) + "\n")
        self._output.flush()


class GuestRun:
    """A guest that runs some of the session's tests; ``close`` ends it.

    Args:
        items: the tests.

    Raises:
        MachineError: a guest cannot be started.
    """

    def __init__(self, items: list[pytest.Item]) -> None:
        self._closing = contextlib.ExitStack()
        folder = Path(self._closing.enter_context(TemporaryDirectory(prefix="svcproxy-tests-")))
        self._reports = folder / "reports"
        self._position = 0
        self._seen: dict[str, list[Report]] = {}
        self.reported = False
        """Whether the cause of the guest's failure has been reported."""
        names = folder / "tests"
        names.write_text("".join(f"{item.nodeid}\n" for item in items), encoding="utf-8")
        root = items[0].config.rootpath
        command = [sys.executable, "-m", "pytest", *_WITHOUT, f"--report-to={self._reports}"]
        command += ["--tb=short", f"--timeout={TEST_LIMIT}", f"--rootdir={root}", f"@{names}"]
        guest = uml.Guest(command, folder=root, timeout=LIMIT, results=folder)
        self._guest = self._closing.enter_context(guest)

    def reports(self, name: str) -> list[Report]:
        """Wait for the reports of a test: of set-up, call and teardown.

        Raises:
            MachineError: the guest ended before; the message ends with its last output.
        """
        while not self._complete(name):
            running = self._guest.running(0.1)
            self._read()
            if not running and not self._complete(name):
                finished = self._guest.wait()
                raise MachineError(f"status {finished.status}, output:\n{finished.output}")
        return self._seen[name]

    def trouble(self) -> str:
        """Return why the guest's pytest failed, if no test has reported that."""
        status = self._guest.wait().status
        failed = any(report["outcome"] == "failed" for r in self._seen.values() for report in r)
        if status == (1 if failed else 0):
            return ""
        return f"pytest in the guest ended with status {status}:\n{self._guest.output}"

    def close(self) -> None:
        """End the guest."""
        self._closing.close()

    def _complete(self, name: str) -> bool:
        return any(report["when"] == "teardown" for report in self._seen.get(name, ()))

    def _read(self) -> None:
        if not self._reports.exists():
            return
        with self._reports.open("rb") as lines:
            lines.seek(self._position)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                report = json.loads(line)
                self._seen.setdefault(report["nodeid"], []).append(report)


def shares(items: list[pytest.Item], count: int = GUESTS) -> list[list[pytest.Item]]:
    """Distribute tests evenly over at most ``count`` guests, module by module."""
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    found: list[list[pytest.Item]] = [[] for _ in range(count)]
    for module in sorted(modules.values(), key=len, reverse=True):
        min(found, key=len).extend(module)
    return [share for share in found if share]


class Guests:
    """Runs the tests that need a guest in guests, and reports their results."""

    def __init__(self, variants: frozenset[str]) -> None:
        self._variants = variants
        self._runs: dict[str, GuestRun] = {}
        self._last: set[str] = set()
        self._reason = "no guest was started"

    def _needs_guest(self, item: pytest.Item) -> bool:
        return variant_of(item) in self._variants or item.get_closest_marker("uml") is not None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Move the guests' tests to the end, so that guests have time to run them meanwhile.

        Tests that need features which that kernel lacks are deselected: ``./dev vm`` runs them.
        """
        items[:] = [item for item in items if item.get_closest_marker("vm") is None]
        items.sort(key=self._needs_guest)
        for item in filter(self._needs_guest, items):
            item.add_marker(pytest.mark.timeout(LIMIT))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Boot the guests before the first test."""
        items = [item for item in session.items if self._needs_guest(item)]
        if session.config.option.collectonly or session.testsfailed:
            return
        for share in shares(items):
            try:
                run = GuestRun(share)
            except MachineError as error:
                self._reason = str(error)
                return
            self._runs.update((item.nodeid, run) for item in share)
            self._last.add(share[-1].nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a test of a guest as a test of this session."""
        if not self._needs_guest(item):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        """End the guests, even while tests are running."""
        for run in set(self._runs.values()):
            run.close()

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        run = self._runs.get(item.nodeid)
        if run is None:
            yield _failure(item, self._reason)
            return
        try:
            for data in run.reports(item.nodeid):
                report = item.config.hook.pytest_report_from_serializable(
                    config=item.config, data=data
                )
                if report.skipped:
                    yield _failure(item, f"nothing is skipped in the guest: {report.longrepr}")
                else:
                    yield report
            trouble = run.trouble() if item.nodeid in self._last else ""
        except MachineError as error:
            trouble = f"the guest did not finish this test: {error}"
            if run.reported:
                trouble = "the guest had ended, see above"
            run.reported = True
        if trouble:
            yield _failure(item, trouble)


def _failure(item: pytest.Item, reason: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=reason,
        when="call",
    )
