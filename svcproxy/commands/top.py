"""``svcproxy top``: Services by new and open connections, refusals and drops, with the clients."""

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Self

from svcproxy.accounting.connections import ConnectionEvents, Served, open_connections
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Rates, Reading, rates_between
from svcproxy.accounting.counters import CountersUnreadableError, read_counters
from svcproxy.accounting.refused_packets import GroupUnavailableError, RefusedPackets
from svcproxy.commands.core.exit_codes import CommandError, ExitCode
from svcproxy.commands.core.top_documents import Order, Top, ordered, top_frontends
from svcproxy.commands.core.top_table import table
from svcproxy.commands.output import Output
from svcproxy.commands.sources import add_source_arguments, load_view
from svcproxy.conntrack.table import ConntrackError
from svcproxy.explain.core.view import NodeView
from svcproxy.model.names import IPFamily

EXAMPLES = """\
  svcproxy top                      refresh every 2 s; q ends, n o r d sort
  svcproxy top --once               one sample of 2 s
  svcproxy top --sort refused       Services that refuse most first
  svcproxy top --interval 10 -o json    a document per line every 10 s
"""
_INTERVAL = 2.0
_SHORTEST, _LONGEST = 0.1, 3600.0
_LIMIT = 1000
_RELOAD_SECONDS = 30.0
_DUMP_SHARE = 10
"""The table of connections is read again after ten times as long as reading it took."""
_KEYS = {b"n": Order.NEW, b"o": Order.OPEN, b"r": Order.REFUSED, b"d": Order.DROPPED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``Command``."""
    parser.add_argument(
        "--sort",
        type=Order,
        choices=list(Order),
        default=Order.NEW,
        metavar="{" + ",".join(Order) + "}",
        help="what comes first (new)",
    )
    parser.add_argument("--once", action="store_true", help="print one sample and end")
    parser.add_argument(
        "--interval",
        type=_seconds,
        metavar="SECONDS",
        help=f"how long a sample takes ({_INTERVAL:g}); repeats also if the output is no terminal",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=_LIMIT,
        metavar="N",
        help=f"how many frontends a document lists ({_LIMIT})",
    )
    add_source_arguments(parser)


def _seconds(text: str) -> float:
    value = float(text)
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"must be between {_SHORTEST:g} and {_LONGEST:g}")
    return value


def run(arguments: argparse.Namespace, output: Output) -> int:
    """See ``Command``."""
    interactive = sys.stdout.isatty() and not output.as_json
    once = arguments.once or not (interactive or arguments.interval)
    sampler = _Sampler(arguments)
    try:
        with sampler, _keys(active=interactive and not once) as keys:
            while True:
                top = sampler.sample(keys)
                if output.as_json:
                    output.document(top)
                else:
                    _show(output, top, screen=interactive and not once)
                if once or _pressed(keys, sampler):
                    return ExitCode.OK
    except ConntrackError as error:
        code = ExitCode.NOT_PERMITTED if "permitted" in str(error) else ExitCode.KERNEL
        raise CommandError(str(error), code) from error


class _Sampler:
    """Takes samples; asks for the Services again from time to time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._seconds: float = arguments.interval or _INTERVAL
        self.order: Order = arguments.sort
        self._view = load_view(arguments)
        self._loaded = time.monotonic()
        self._events = ConnectionEvents(_served(self._view))
        self._open: dict[FrontendKey, int] = {}
        self._next_dump = 0.0
        self._before = _counters(self._view)
        self._packets = _refused_packets(self._view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        if self._packets is not None:
            self._packets.close()

    def sample(self, wakeup: int | None) -> Top:
        """Take a sample; a key ends it early."""
        if time.monotonic() - self._loaded > _RELOAD_SECONDS:
            self._view = load_view(self._arguments)
            self._loaded = time.monotonic()
            self._events.serve(_served(self._view))
        found = self._events.sample(self._seconds, wakeup)
        self._read_open()
        view = self._view
        rates = self._rates()
        refused = {} if self._packets is None else self._packets.clients(self._events.indexes)
        rows = ordered(
            top_frontends(
                {family: about.state for family, about in view.families.items()},
                found.seconds,
                self._open,
                found.activities.of,
                rates,
                refused,
            ),
            self.order,
        )
        limit = max(1, self._arguments.limit)
        return Top(
            node=view.node,
            mode=view.mode,
            time=round(time.time(), 3),
            seconds=round(found.seconds, 3),
            counted_refusals=rates is not None,
            events_lost=found.lost,
            frontends=tuple(rows[:limit]),
            left_out=max(0, len(rows) - limit),
        )

    def _rates(self) -> dict[FrontendKey, Rates] | None:
        """Return what the kernel's counters gained since the last sample; ``None`` without any."""
        before, self._before = self._before, _counters(self._view)
        if before is None or self._before is None:
            return None
        (begin, old), (end, new) = before, self._before
        return rates_between(old, new, end - begin)

    def _read_open(self) -> None:
        """Count open connections, unless that took long a short time ago."""
        begin = time.monotonic()
        if begin < self._next_dump:
            return
        self._open = open_connections(_served(self._view))
        end = time.monotonic()
        self._next_dump = end + _DUMP_SHARE * (end - begin)


def _refused_packets(view: NodeView) -> RefusedPackets | None:
    """Listen to the packets that are refused; ``None`` if they are not logged.

    Another program, such as ulogd, may listen to the group: it comes first.
    """
    group = view.config.refusal_log_group
    try:
        return RefusedPackets(group) if group else None
    except GroupUnavailableError:
        return None


def _counters(view: NodeView) -> tuple[float, dict[FrontendKey, Reading]] | None:
    """Read the accounting tables; return when, and the counters; ``None`` without tables."""
    try:
        readings = [read_counters(family) for family in view.families]
    except CountersUnreadableError as error:
        raise CommandError(str(error), ExitCode.KERNEL) from error
    if all(found is None for found in readings):
        return None
    merged = {key: reading for found in readings for key, reading in (found or {}).items()}
    return time.monotonic(), merged


def _served(view: NodeView) -> dict[IPFamily, Served]:
    return {f: Served(about.state.ports, about.settings) for f, about in view.families.items()}


def _show(output: Output, top: Top, *, screen: bool) -> None:
    width, height = shutil.get_terminal_size((80, 24)) if screen else (10_000, 10_000)
    if screen:
        output.clear()
    for line in table(top, width, height - 1):
        output.line(line)
    output.flush()


@contextlib.contextmanager
def _keys(*, active: bool) -> Iterator[int | None]:
    """Let single keys be read from the terminal; yield its descriptor, ``None`` if there is none."""
    if not active or not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(keys: int | None, sampler: _Sampler) -> bool:
    """Carry out the keys that were pressed; return whether one of them ends the command."""
    while keys is not None and select.select([keys], [], [], 0)[0]:
        key = os.read(keys, 1)
        if key in {b"q", b"Q", b"\x04", b""}:
            return True
        sampler.order = _KEYS.get(key, sampler.order)
    return False
