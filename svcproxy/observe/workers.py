"""A few threads that render slow pages, so that quick answers never wait for them."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from threading import Condition, Thread

from svcproxy import threads
from svcproxy.limits import THREAD_STEP_SECONDS
from svcproxy.threads import spawn

Job = Callable[[], None]


class Workers:
    """Runs jobs in order, a fixed number at a time; threads start with the first job.

    The queue itself has no limit: the server submits at most one job for each open connection.

    Args:
        name: begins the names of the threads.
        number: the most threads.
    """

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self._number = number
        self._condition = Condition()
        self._jobs: dict[Hashable, Job] = {}
        self._idle = 0
        self._threads: list[Thread] = []
        self._stopped = False

    def submit(self, key: Hashable, job: Job) -> None:
        """Run ``job``, which must not raise, as soon as a thread is free."""
        with self._condition:
            if self._stopped:
                return
            self._jobs[key] = job
            if self._idle >= len(self._jobs) or len(self._threads) >= self._number:
                self._condition.notify()
            else:
                name = f"{self._name}-page-{len(self._threads)}"
                with suppress(RuntimeError):  # no thread can be had: the next job tries again
                    self._threads.append(spawn(self._run, name))

    def cancel(self, key: Hashable) -> None:
        """Do not run the job with this key if it still waits."""
        with self._condition:
            self._jobs.pop(key, None)

    def stop(self, seconds: float) -> None:
        """Start no job any more, and wait so long for each thread; a running job is left to end."""
        with self._condition:
            self._stopped = True
            self._jobs.clear()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                threads.waiting()
                self._condition.wait_for(lambda: self._jobs or self._stopped)
                self._idle -= 1
                if self._stopped:
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
            threads.working(THREAD_STEP_SECONDS)
            job()
            del job  # a page of some size
