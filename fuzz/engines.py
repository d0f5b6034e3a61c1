"""The two engines: Atheris, guided by coverage, and Hypothesis where Atheris does not install.

An engine runs in a process of its own. It ends with status 0 when the time is over, and with
another one after writing the input of a finding to the given file. Its output goes to stderr.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fuzz.catalogue import Target

try:
    import atheris
except ImportError:  # no wheel for this interpreter or machine
    atheris = None

ENGINE = "Atheris" if atheris is not None else "Hypothesis"
"""The name of the engine that is used."""

SLOWEST_SECONDS = 30
"""One input that takes longer is a finding."""
_MEMORY_MB = 2048
_LONGEST = 65536
_FAILED = 70


@dataclass(frozen=True)
class Run:
    """The options of one run of a target.

    Attributes:
        seconds: how long to go on.
        seed: where the random numbers begin.
        found: the file for the input of a finding.
        corpus: a folder that keeps inputs which reach new code, or none.
    """

    seconds: int
    seed: int
    found: Path
    corpus: Path | None


def instrumented() -> AbstractContextManager[Any]:
    """Instrument modules that are imported in this context, if the engine needs it."""
    if atheris is None:
        return nullcontext()
    context: AbstractContextManager[Any] = atheris.instrument_imports(include=["svcproxy"])
    return context


def run(target: Target, job: Run) -> NoReturn:
    """Fuzz a target, then end the process, which is a fork of the runner."""
    status = _FAILED
    try:
        if atheris is not None:
            _with_atheris(target, job)
        else:
            _with_hypothesis(target, job)
        status = 0
    except SystemExit as end:  # how Atheris ends
        status = end.code if isinstance(end.code, int) else _FAILED
    except BaseException:  # noqa: BLE001 - shown, and the status says the rest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _with_atheris(target: Target, job: Run) -> None:
    with tempfile.TemporaryDirectory() as name:
        known = Path(name, "known")
        known.mkdir()
        for label, data in target.inputs():
            (known / label).write_bytes(data)
        grown = job.corpus or Path(name, "grown")
        grown.mkdir(parents=True, exist_ok=True)
        arguments = {
            "max_total_time": job.seconds,
            "seed": job.seed,
            "max_len": _LONGEST,
            "timeout": SLOWEST_SECONDS,
            "rss_limit_mb": _MEMORY_MB,
            "exact_artifact_path": job.found,
            "print_final_stats": 1,
        }
        flags = [f"-{key}={value}" for key, value in arguments.items()]
        atheris.Setup(
            [sys.argv[0], *flags, str(grown), str(known)],
            partial(_checked, target.check, job.found),
        )
        atheris.Fuzz()


def _with_hypothesis(target: Target, job: Run) -> None:
    """Try bytes from Hypothesis, and known inputs with exchanged pieces, until the time is over."""
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415 - not used beside Atheris
    from hypothesis import seed as seeded  # noqa: PLC0415
    from hypothesis import strategies as st  # noqa: PLC0415

    ends = time.monotonic() + job.seconds
    known = [data for _, data in target.inputs()] or [b""]
    place = st.integers(0, max(map(len, known)))
    inputs = st.one_of(
        st.binary(max_size=4096),
        st.builds(_spliced, st.sampled_from(known), place, place, st.binary(max_size=64)),
    )
    signal.signal(signal.SIGALRM, _too_slow)
    numbers = random.Random(job.seed)
    count = 0

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        signal.alarm(SLOWEST_SECONDS)
        _checked(target.check, job.found, data)
        signal.alarm(0)

    for data in known:
        one(data)
    while time.monotonic() < ends:
        once = settings(
            max_examples=100,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        seeded(numbers.randrange(2**32))(once(given(inputs)(one)))()
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


def _checked(check: Callable[[bytes], None], found: Path, data: bytes) -> None:
    """Store the input of a finding; libFuzzer itself stores only those that exceed its limits."""
    try:
        check(data)
    except BaseException:
        found.write_bytes(data)  # Hypothesis runs the smallest one last
        raise


def _spliced(data: bytes, start: int, end: int, piece: bytes) -> bytes:
    start, end = sorted((start, end))
    return data[:start] + piece + data[end:]


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {SLOWEST_SECONDS} s")
