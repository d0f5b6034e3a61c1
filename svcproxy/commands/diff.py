"""``svcproxy diff``: how the kernel differs from the desired state, and the last repairs."""

import argparse
import time
from collections.abc import Iterator

import msgspec

from svcproxy.admin.client import AdminClient, NoDaemonError
from svcproxy.admin.core.protocol import Repairs
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.diff_text import write_diff, write_repairs, write_state
from svcproxy.commands.output import Output
from svcproxy.explain.core.diff_documents import Diff, diff
from svcproxy.explain.kernel_check import check

EXAMPLES = """\
  svcproxy diff                     what differs, and the last repairs
  svcproxy diff -n 50               the last 50 repairs
  svcproxy diff --watch             follow repairs and differences
  svcproxy diff -o json | jq -r '.families[].differences[].object'
"""
_REPAIRS = 10
_MOST_REPAIRS = 1000
_INTERVAL = 15.0
_SHORTEST, _LONGEST = 5.0, 3600.0
_RETRY_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument(
        "-n",
        "--repairs",
        type=_count,
        default=_REPAIRS,
        metavar="N",
        help=f"how many of the last repairs ({_REPAIRS})",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="follow: print each repair, and the differences when they change",
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=_INTERVAL,
        metavar="SECONDS",
        help=f"with --watch: how often the kernel is compared besides at repairs ({_INTERVAL:g})",
    )


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= _MOST_REPAIRS:
        raise argparse.ArgumentTypeError(f"must be between 0 and {_MOST_REPAIRS}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"must be between {_SHORTEST:g} and {_LONGEST:g}")
    return value


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    client = AdminClient(arguments.socket)
    found = _found(client, _last(client.repairs(), arguments.repairs))
    if output.as_json:
        output.document(found)
    else:
        write_diff(output, found)
    if arguments.watch:
        output.flush()
        for _ in follow(client, found, output, arguments.interval):
            output.flush()
    return _code(found)


def _found(client: AdminClient, repairs: Repairs) -> Diff:
    checked = check(client)
    return diff(checked.view, checked.states, repairs)


def _last(repairs: Repairs, count: int) -> Repairs:
    kept = repairs.repairs[len(repairs.repairs) - count :] if count < len(repairs.repairs) else None
    return repairs if kept is None else Repairs(repairs.total, kept)


def _code(found: Diff) -> ExitCode:
    if found.differs:
        return ExitCode.DIFFERENT
    return ExitCode.KERNEL if any(about.error for about in found.families) else ExitCode.OK


def follow(client: AdminClient, found: Diff, output: Output, interval: float) -> Iterator[Diff]:
    """Print repairs as they happen, and the differences whenever they change; yield what was found.

    Args:
        client: asks the daemon.
        found: what was printed first.
        output: where to print.
        interval: seconds between two comparisons without a repair.

    Raises:
        AdminError: the daemon has ended.
    """
    while True:
        repairs = _wait(client, found.repairs_total, interval)
        before, found = found, _found(client, repairs)
        changed = _stable(found) != _stable(before)
        if output.as_json and (changed or found.repairs):
            output.document(found)
        elif not output.as_json:
            write_repairs(output, found.repairs)
            if changed:
                output.line(time.strftime("%H:%M:%S"))
                write_state(output, found)
        yield found


def _wait(client: AdminClient, after: int, seconds: float) -> Repairs:
    """Return the repairs after a number; wait for one up to some seconds."""
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        try:
            repairs = client.repairs(after, max(left, 0.0))
        except NoDaemonError:
            # The daemon has ended, or serves as many waiting clients as it will.
            time.sleep(min(max(left, 0.0), _RETRY_SECONDS))
            repairs = client.repairs(after)
        if repairs.total < after:  # another daemon, which counts from the beginning
            return client.repairs()
        left = end - time.monotonic()
        if repairs.repairs or left <= 0:
            return repairs
        time.sleep(min(left, _RETRY_SECONDS))


def _stable(found: Diff) -> Diff:
    """Return what counts as a change: differences, and whether the daemon is up to date."""
    replace = msgspec.structs.replace
    return replace(
        found,
        node=replace(found.node, resource_version=""),
        families=tuple(replace(about, sizes={}) for about in found.families),
        repairs=(),
        repairs_total=0,
    )
