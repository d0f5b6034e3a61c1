"""Runs tests that need a kernel with IPVS in User Mode Linux, as if they ran in this session.

A test runs in a guest if its ``variant`` is ``ipvs`` or it is marked ``uml``. Guests boot when the
first test of the session starts and run in parallel with the session's other tests; their own
tests are reported last. There are two guests, because their tests spend much time waiting. With
``--processes=2``, the other tests are run by two processes, too. pytest in a guest or in the second
process writes its reports to a file, from which this session reads them (``tests/sessions.py``). A
test without a report has failed, and so has a test that was skipped in a guest.

In a guest that was started by hand (``python -m testbed.uml -- .venv/bin/python -m pytest ...``),
these tests run like any others.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import uml
from testbed.machines import MachineError
from tests.sessions import Machine, Process, Sessions, group_of, run_items, variant_of

GUESTS = 2
"""The maximum number of guests; the tests of a module run in the same one."""
LIMIT = 2400.0
"""Seconds that a guest may take for all of its tests."""
TEST_LIMIT = 300
"""Seconds that one test may take in a guest; starting programs is slow, and the host is busy."""
_WITHOUT = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # these write to the tree


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
    group.addoption(
        "--processes",
        type=int,
        choices=(1, 2),
        default=1,
        help="processes for the tests that run on this machine's kernel (default: 1)",
    )
    group.addoption("--report-to", type=Path, help="write each test's reports to this file, too")
    group.addoption("--member-of", type=Path, help="for internal use, see tests/sessions.py")
    group.addoption("--backwards", action="store_true", help="for internal use, like --member-of")


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


class Distribution:
    """Runs tests in guests and in a second process, and reports their results.

    Args:
        variants: the variants whose tests run in guests.
        processes: how many processes run the other tests.
        options: further options of the other sessions.
    """

    def __init__(self, variants: frozenset[str], processes: int, options: list[str]) -> None:
        self._variants = variants
        self._processes = processes
        self._options = options
        self._guests: Sessions | None = None
        self._second: Sessions | None = None
        self._reason = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Move the guests' tests to the end, so that guests have time to run them meanwhile.

        Tests that need features which that kernel lacks are deselected: ``./dev vm`` runs them.
        """
        items[:] = [item for item in items if item.get_closest_marker("vm") is None]
        items.sort(key=self._needs_guest)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Boot the guests, start the second process and run the tests."""
        if session.config.option.collectonly or session.testsfailed:
            return None
        there = [item for item in session.items if self._needs_guest(item)]
        here = [item for item in session.items if not self._needs_guest(item)]
        if there:
            try:
                self._guests = Sessions(
                    there,
                    [*_WITHOUT, *self._options, "--tb=short", f"--timeout={TEST_LIMIT}"],
                    _guest,
                    [False, True][: min(GUESTS, len({group_of(item) for item in there}))],
                )
            except MachineError as error:
                self._reason = str(error)
        if self._processes > 1 and len({group_of(item) for item in here}) > 1:
            options = ["-p", "no:cacheprovider", *self._options]
            self._second = Sessions(here, options, _process, [True])
        claims = self._second.claims if self._second is not None else None
        run_items(session, claims, self._report)
        for sessions in (self._guests, self._second):
            if sessions is not None and not sessions.reported and (trouble := sessions.trouble()):
                session.shouldfail = trouble
                raise session.Failed(trouble)
        return True

    def pytest_unconfigure(self) -> None:
        """End the other sessions, even while tests are running."""
        for sessions in (self._guests, self._second):
            if sessions is not None:
                sessions.close()

    def _needs_guest(self, item: pytest.Item) -> bool:
        return variant_of(item) in self._variants or item.get_closest_marker("uml") is not None

    def _is_own(self, item: pytest.Item) -> bool:
        if self._needs_guest(item):
            return False
        return self._second is None or self._second.claims.claim(item)

    def _report(self, item: pytest.Item) -> bool:
        """Report a test as one of this session if another one runs it; return whether it does."""
        if self._is_own(item):
            return False
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        sessions = self._guests if self._needs_guest(item) else self._second
        if sessions is None:
            reports = iter([_failure(item, self._reason)])
        else:
            reports = self._reports(item, sessions)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, sessions: Sessions) -> Iterator[pytest.TestReport]:
        where = "the guest" if sessions is self._guests else "the second process"
        try:
            for data in sessions.reports(item.nodeid):
                report = item.config.hook.pytest_report_from_serializable(
                    config=item.config, data=data
                )
                if isinstance(report.longrepr, list):
                    # Of a skipped test: JSON has no tuples, which pytest's summary expects.
                    report.longrepr = tuple(report.longrepr)
                if report.skipped and sessions is self._guests:
                    yield _failure(item, f"nothing is skipped in the guest: {report.longrepr}")
                else:
                    yield report
        except MachineError as error:
            reason = f"{where} did not finish this test: {error}"
            yield _failure(item, f"{where} had ended, see above" if sessions.reported else reason)
            sessions.reported = True


def _guest(command: list[str], folder: Path, results: Path) -> Machine:
    return uml.Guest(command, folder=folder, timeout=LIMIT, results=results)


def _process(command: list[str], folder: Path, results: Path) -> Machine:
    return Process(command, folder=folder, output=results / "output")


def _failure(item: pytest.Item, reason: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=reason,
        when="call",
    )
