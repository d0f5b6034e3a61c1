"""The page process, seen from the daemon: starts it on demand, asks it, and ends it."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from svcproxy.limits import UI_PAGE_SECONDS
from svcproxy.threads import spawn
from svcproxy.ui.channel import ChannelClosedError, MalformedMessageError, receive, send
from svcproxy.ui.core.messages import Page, PageQuery

_log = structlog.get_logger()

_STOP_SECONDS = 0.2


class NoPageError(Exception):
    """The page process has no answer; the message is the reason in words."""


def command(admin_socket: str) -> list[str]:
    """Return the command line of the page process; its channel is standard input.

    Args:
        admin_socket: the path of the daemon's socket.
    """
    # -P: modules in the working directory are not imported
    return [sys.executable, "-P", "-m", "svcproxy.ui", admin_socket]


class _Child:
    """A running page process."""

    def __init__(self, program: Sequence[str]) -> None:
        self.channel, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    program,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self.channel.close()
            raise

    def kill(self) -> None:
        with suppress(OSError):
            self.process.kill()


class PageProcess:
    """Asks a page process, which is started on demand. At most one runs.

    The process ends by itself after a minute without requests; the next request starts another one.
    A process that ended, for any reason, is replaced once per request; one that exceeds the
    time limit is killed.

    Args:
        program: the command line.
        seconds: how long an answer may take, including the start.
    """

    def __init__(self, program: Sequence[str], seconds: float = UI_PAGE_SECONDS) -> None:
        self._program = program
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """The ID of the running process; ``None`` if there is none."""
        child = self._child
        return child.process.pid if child is not None else None

    def ask(self, query: PageQuery) -> Page:
        """Return a page.

        Raises:
            NoPageError: the process could not be started, failed, or took too long.
        """
        with self._lock:
            deadline = time.monotonic() + self._seconds
            page = self._attempt(query, deadline)
            # A process that had been idle may have ended just before it got the request.
            return page or self._attempt(query, deadline) or self._failed()

    def stop(self) -> None:
        """Kill the process, and start none from now on; a waiting ``ask`` raises."""
        self._stopped = True
        child = self._child
        if child is not None:
            child.kill()
        if self._lock.acquire(timeout=_STOP_SECONDS):
            try:
                if self._child is not None:
                    self._discard(self._child)
            finally:
                self._lock.release()

    def _attempt(self, query: PageQuery, deadline: float) -> Page | None:
        """Ask once; return ``None`` if the process ended."""
        child = self._child or self._start()
        left = max(0.0, deadline - time.monotonic())
        try:
            send(child.channel, query, left)
            return receive(child.channel, Page, max(0.0, deadline - time.monotonic()))
        except ChannelClosedError:
            self._discard(child)
            return None
        except TimeoutError:
            self._discard(child)
            raise NoPageError(f"the page took longer than {self._seconds:g} s") from None
        except MalformedMessageError as error:
            self._discard(child)
            raise NoPageError(f"the page process sent {error}") from error

    def _start(self) -> _Child:
        if self._stopped:
            raise NoPageError("svcproxy is stopping")
        try:
            child = _Child(self._program)
        except OSError as error:
            raise NoPageError(f"the page process cannot be started: {error}") from error
        self._child = child
        spawn(self._reaper(child), "ui-process")
        if self._stopped:
            child.kill()
        return child

    def _reaper(self, child: _Child) -> Callable[[], None]:
        """Return what waits for the end of a process, so that it does not stay as a zombie."""

        def wait() -> None:
            status = child.process.wait()
            if status and not self._stopped:
                _log.info("ui.process_ended", status=status)

        return wait

    def _discard(self, child: _Child) -> None:
        child.kill()
        child.channel.close()
        self._child = None

    def _failed(self) -> Page:
        raise NoPageError("the page process ends without an answer")
