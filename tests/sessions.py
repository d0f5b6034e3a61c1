"""Further pytest sessions that run some of a session's tests: in guests, or beside it.

They share the tests among themselves: whichever session first claims the tests of a module, runs
them. A claim is a folder, which only one process can create. One session works through the list
from its beginning and another one from its end, so that both are busy until they meet, whatever
each test takes. Each of them writes the reports of its tests to a file, see ``ReportWriter``.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Protocol, Self, cast

import pytest

from testbed.machines import Finished, MachineError, read

_POLL = 0.05  # seconds between reads of the reports
_END = 20.0  # seconds for a session to remove what its tests have built
Report = dict[str, Any]


def variant_of(item: pytest.Item) -> str | None:
    """Return the variant with which a test runs, if it has one."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("variant") if callspec else None


def group_of(item: pytest.Item) -> str:
    """Return the name of the group of tests that are run by the same session.

    These are the tests of a module with the same variant: they share its fixtures.
    """
    return f"{item.nodeid.partition('::')[0]},{variant_of(item)}"


class Claims:
    """The groups of tests that this session runs.

    Args:
        folder: an empty folder that all sessions can write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: dict[str, bool] = {}

    def claim(self, item: pytest.Item) -> bool:
        """Claim the group of a test; return whether this session runs it."""
        group = group_of(item)
        if group not in self._own:
            self._own[group] = self._create(group)
        return self._own[group]

    def has(self, item: pytest.Item) -> bool:
        """Return whether this session has claimed the group of a test."""
        return self._own.get(group_of(item), False)

    def _create(self, group: str) -> bool:
        # User Mode Linux passes mkdir on to the host, but not O_EXCL.
        try:
            (self._folder / group.replace("/", ",")).mkdir()
        except FileExistsError:
            return False
        return True


def run_items(
    session: pytest.Session, claims: Claims | None, report: Callable[[pytest.Item], bool]
) -> None:
    """Run a session's own tests in order, like pytest's own loop.

    Args:
        session: the session.
        claims: its claims; ``None`` if it runs all tests that ``report`` leaves to it.
        report: called with each test. If another session runs the test, it reports the result
            and returns true.

    Raises:
        pytest.Session.Failed: enough tests have failed.
        pytest.Session.Interrupted: a test or a hook asked for it.
    """
    for item, following in zip_longest(session.items, session.items[1:]):
        if not report(item):
            after = following if claims is None else _after(item, following, claims)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


def _after(item: pytest.Item, following: pytest.Item | None, claims: Claims) -> pytest.Item | None:
    """Return the node whose fixtures survive a test.

    The next test that this session runs is unknown at the end of a group: another session may
    claim the next group. Then only the fixtures of the whole session survive.
    """
    if following is not None and following.path == item.path and claims.has(following):
        return following
    return cast("pytest.Item", item.session)


class Member:
    """Lets this session run some of the tests of another session, which started it.

    Args:
        folder: the folder of the ``Sessions``.
        backwards: whether to begin with the last group.
    """

    def __init__(self, folder: Path, *, backwards: bool) -> None:
        names = (folder / "tests").read_text(encoding="utf-8").splitlines()
        self._order = {name: number for number, name in enumerate(names)}
        self._claims = Claims(folder / "claims")
        self._backwards = backwards

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Select the tests of the list, in its order."""
        order = self._order
        chosen = sorted((i for i in items if i.nodeid in order), key=lambda i: order[i.nodeid])
        groups = [list(group) for _, group in groupby(chosen, group_of)]
        if self._backwards:
            groups.reverse()
        items[:] = [item for group in groups for item in group]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests that this session claims."""
        if session.testsfailed:
            return None
        run_items(session, self._claims, lambda item: not self._claims.claim(item))
        return True


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


class Machine(Protocol):
    """Where a session runs: ``uml.Guest``, or a ``Process`` of this machine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def output(self) -> str: ...

    def running(self, patience: float) -> bool: ...

    def wait(self) -> Finished: ...


class Process:
    """A process of this machine that runs a command; as a context manager it starts and ends.

    Args:
        command: the command line.
        folder: the working folder.
        output: the file for its output.
    """

    def __init__(self, command: Sequence[str], *, folder: Path, output: Path) -> None:
        # A shell starts background processes with SIGINT ignored.
        ending = ["setpriv", "--pdeathsig", "INT", "env", "--default-signal=INT"]
        self._command = [*ending, *command]
        self._folder, self._output = folder, output
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._output.open("wb") as output:
            # A session of its own: only the main process handles Ctrl-C at the terminal.
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def output(self) -> str:
        """The output of the command so far."""
        return read(self._output)

    def running(self, patience: float) -> bool:
        """Wait up to ``patience`` seconds; return whether the process is still running."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        return self._process.returncode is None

    def wait(self) -> Finished:
        """Wait until the command has ended."""
        assert self._process is not None
        return Finished("", self._process.wait(), self.output)


class _Session:
    """One of the ``Sessions``: its machine and the reports that were read so far."""

    def __init__(self, machine: Machine, reports: Path) -> None:
        self.machine = machine
        self._reports = reports
        self._position = 0
        self._failed = False

    def read(self) -> Iterator[Report]:
        """Read the reports written since the last call."""
        if not self._reports.exists():
            return
        with self._reports.open("rb") as lines:
            lines.seek(self._position)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                report = json.loads(line)
                self._failed |= report["outcome"] == "failed"
                yield report

    def trouble(self) -> str:
        """Wait for the end; return why the session failed, if no test has reported that."""
        try:
            finished = self.machine.wait()
        except MachineError as error:
            return str(error)
        if finished.status == (1 if self._failed else 0):
            return ""
        return f"pytest ended with status {finished.status}:\n{finished.output}"


Start = Callable[[list[str], Path, Path], Machine]
"""Makes a machine for a command, its working folder, and the folder to which it may write."""


class Sessions:
    """Sessions that run tests in parallel with this one; ``close`` ends them.

    Args:
        items: the tests.
        options: further options of their pytest.
        start: makes the machine of a session.
        directions: for each session, whether it begins with the last test.

    Attributes:
        claims: for this session, if it runs some of the tests, too.
        reported: whether a test has reported that the sessions ended before it.

    Raises:
        MachineError: a machine cannot be started.
    """

    def __init__(
        self,
        items: list[pytest.Item],
        options: Sequence[str],
        start: Start,
        directions: Sequence[bool],
    ) -> None:
        self._seen: dict[str, list[Report]] = {}
        self.reported = False
        self._sessions: list[_Session] = []
        root = items[0].config.rootpath
        files = dict.fromkeys(item.nodeid.partition("::")[0] for item in items)
        with contextlib.ExitStack() as closing:
            folder = Path(closing.enter_context(TemporaryDirectory(prefix="svcproxy-tests-")))
            names = "".join(f"{item.nodeid}\n" for item in items)
            (folder / "tests").write_text(names, encoding="utf-8")
            (folder / "claims").mkdir()
            self.claims = Claims(folder / "claims")
            for number, backwards in enumerate(directions):
                reports = folder / f"reports{number}"
                command = [sys.executable, "-m", "pytest", *options, f"--rootdir={root}"]
                command += [f"--report-to={reports}", f"--member-of={folder}"]
                command += ["--backwards"] if backwards else []
                machine = start([*command, *files], root, folder)
                self._sessions.append(_Session(closing.enter_context(machine), reports))
            self._closing = closing.pop_all()

    def reports(self, name: str) -> list[Report]:
        """Wait for the reports of a test: of set-up, call and teardown.

        Raises:
            MachineError: all sessions ended before; the message says how.
        """
        while not self._complete(name):
            running = [each for each in self._sessions if each.machine.running(0)]
            self._read()
            if not running and not self._complete(name):
                raise MachineError(self.trouble() or "all sessions have ended")
            time.sleep(_POLL)
        return self._seen[name]

    def trouble(self) -> str:
        """Wait for the sessions; return why any failed, if no test has reported that."""
        return "\n".join(filter(None, (each.trouble() for each in self._sessions)))

    def close(self) -> None:
        """End the sessions."""
        self._closing.close()

    def _complete(self, name: str) -> bool:
        return any(report["when"] == "teardown" for report in self._seen.get(name, ()))

    def _read(self) -> None:
        for each in self._sessions:
            for report in each.read():
                self._seen.setdefault(report["nodeid"], []).append(report)
