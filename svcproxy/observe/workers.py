"""A small thread pool that renders slow pages, so that probes never wait for them."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from threading import Condition, Thread

from svcproxy import threads
from svcproxy.limits import THREAD_STEP_SECONDS
from svcproxy.threads import spawn

Job = Callable[[], None]


class Workers:
    """Runs jobs in the order of submission; threads start on demand.

    The queue has no limit of its own: the server submits at most one job per open connection.

    Args:
        name: prefix of the thread names.
        number: maximum number of threads.
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
        """Queue ``job``, which must not raise.

        Args:
            key: identifies the job for ``cancel``.
            job: called in a worker thread.
        """
        with self._condition:
            if self._stopped:
                return
            self._jobs[key] = job
            if self._idle >= len(self._jobs) or len(self._threads) >= self._number:
                self._condition.notify()
            else:
                name = f"{self._name}-page-{len(self._threads)}"
                with suppress(RuntimeError):  # no thread can be started: the next job tries again
                    self._threads.append(spawn(self._run, name))

    def cancel(self, key: Hashable) -> None:
        """Remove the job with this key from the queue; a running job is not affected."""
        with self._condition:
            self._jobs.pop(key, None)

    def stop(self, seconds: float) -> None:
        """Drop queued jobs and wait up to ``seconds`` for each thread; running jobs finish."""
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
            del job  # it holds a rendered page, which may be large
