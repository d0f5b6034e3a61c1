"""``./dev fuzz``: run targets for a time and report the inputs that break them."""

import argparse
import hashlib
import io
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

from fuzz import catalogue, engines

FINDINGS = Path(".fuzz", "findings")
_GRACE_SECONDS = 2 * engines.SLOWEST_SECONDS
_HEX_LIMIT = 4096
_OUTPUT_LINES = 40
_STATS = re.compile(r"stat::number_of_executed_units: *([0-9]+)")


def main() -> int:
    """Run the command line; the status is 1 when there is a finding."""
    options = _options()
    chosen = options.target or catalogue.names()
    unknown = sorted(set(chosen) - set(catalogue.names()))
    if unknown:
        sys.exit(f"fuzz: no target {unknown[0]!r}: choose from {', '.join(catalogue.names())}")
    if options.replay:
        return _replay(chosen, options.replay)
    seconds = max(1, options.seconds // len(chosen))
    print(
        f"{engines.ENGINE}, seed {options.seed}: {len(chosen)} targets, {seconds} s each",
        flush=True,
    )
    with engines.instrumented(), redirect_stderr(io.StringIO()):  # a line for every module
        targets = [catalogue.load(name) for name in chosen]
    findings = sum(_fuzzed(target, seconds, options) for target in targets)
    return min(findings, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("./dev fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="modules of fuzz/targets; all of them if none")
    parser.add_argument(
        "--seconds", type=int, default=600, help="for all targets together (default 600)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="where random numbers begin (default 1)"
    )
    parser.add_argument(
        "--corpus", type=Path, help="a folder that keeps what a run learns for the next run"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run the target on one input and stop"
    )
    return parser.parse_args()


def _replay(chosen: list[str], path: Path) -> int:
    if len(chosen) != 1:
        sys.exit("fuzz: --replay needs one target")
    catalogue.load(chosen[0]).check(path.read_bytes())
    print(f"{chosen[0]}: {path} passes")
    return 0


def _fuzzed(target: catalogue.Target, seconds: int, options: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own, report, and return whether it has a finding."""
    with tempfile.TemporaryDirectory() as name:
        found, output = Path(name, "found"), Path(name, "output")
        corpus = (options.corpus / target.name).absolute() if options.corpus else None
        job = engines.Run(seconds, options.seed, found, corpus)
        status = _in_child(target, job, output)
        text = output.read_text("utf-8", "replace")
        if status == 0:
            counted = _STATS.search(text)
            print(f"{target.name}: {counted[1] if counted else '?'} inputs, no finding", flush=True)
            return False
        print("\n".join(text.splitlines()[-_OUTPUT_LINES:]))
        data = found.read_bytes() if found.exists() else None
    _report(target.name, status, data)
    return True


def _in_child(target: catalogue.Target, job: engines.Run, output: Path) -> int:
    """Fork, so that modules are imported and instrumented once for all targets."""
    child = os.fork()
    if child == 0:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        engines.run(target, job)
    ends = time.monotonic() + job.seconds + _GRACE_SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _report(name: str, status: int, data: bytes | None) -> None:
    if data is None:
        print(f"{name}: FAILED with status {status} and left no input", flush=True)
        return
    digest = hashlib.sha256(data).hexdigest()[:16]
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"{name}-{digest}"
    path.write_bytes(data)
    shown = data.hex() if len(data) <= _HEX_LIMIT else f"{data[:_HEX_LIMIT].hex()}… (cut)"
    print(f"{name}: FINDING, {len(data)} bytes: {shown}")
    print(f"  replay: ./dev fuzz --replay {path} {name}")
    print(f"  keep:   cp {path} fuzz/corpus/{name}/<short-description>", flush=True)


if __name__ == "__main__":
    sys.exit(main())
