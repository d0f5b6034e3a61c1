"""The debug pages of ``--profiling``, under kube-proxy's paths.

Python cannot produce Go profiles, so ``go tool pprof`` cannot read these pages. They are text:
the current stacks of all threads (``goroutine``), and stacks sampled over some seconds
(``profile``) in the folded format that flame graph tools read.
"""

import html
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import FrameType

from svcproxy.observe.core.routes import TEXT, PageRequest, Reply, Route, not_found

_HTML = "text/html; charset=utf-8"
_SAMPLES_PER_SECOND = 50
_LONGEST_PROFILE = 30.0
# One profile at a time, as in Go: several would occupy all threads that render pages
_PROFILING = threading.Lock()
_PROFILES = {
    "cmdline": "the command line, its arguments parted by NUL",
    "goroutine": "the stacks of all threads",
    "profile": f"the stacks of all threads over ?seconds=N (at most {_LONGEST_PROFILE:.0f}), folded",
}


def routes(set_verbosity: Callable[[int], None]) -> Mapping[str, Route]:
    """Return the debug pages by path.

    Args:
        set_verbosity: changes the ``-v`` number of the log.
    """
    pages = {"cmdline": _cmdline, "goroutine": _threads, "profile": _profile}
    return {
        "/debug/pprof": lambda _: Reply(
            HTTPStatus.FOUND, _HTML, b"", {"Location": "/debug/pprof/"}
        ),
        "/debug/pprof/": _index,
        **{f"/debug/pprof/{name}": page for name, page in pages.items()},
        "/debug/flags": _flags,
        "/debug/flags/": _flags,
        "/debug/flags/v": lambda request: _put_verbosity(request, set_verbosity),
    }


def _index(request: PageRequest) -> Reply:
    if request.path != "/debug/pprof/":
        return not_found("Unknown profile")
    rows = "".join(
        f'<tr><td><a href="{name}">{name}</a></td><td>{html.escape(text)}</td></tr>\n'
        for name, text in _PROFILES.items()
    )
    page = f"<html><head><title>/debug/pprof/</title></head><body>\n<table>\n{rows}</table>\n</body></html>\n"
    return Reply(HTTPStatus.OK, _HTML, page.encode())


def _cmdline(_request: PageRequest) -> Reply:
    return Reply(HTTPStatus.OK, TEXT, Path("/proc/self/cmdline").read_bytes())


def _threads(_request: PageRequest) -> Reply:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented, and the only way
        parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return Reply(HTTPStatus.OK, TEXT, "\n".join(parts).encode(errors="replace"))


def _profile(request: PageRequest) -> Reply:
    try:
        seconds = float(request.query.get("seconds", "") or _LONGEST_PROFILE)
    except ValueError:
        return Reply(HTTPStatus.BAD_REQUEST, TEXT, b"seconds must be a number\n")
    if not _PROFILING.acquire(blocking=False):
        text = "a profile is being taken already; try again when it is done"
        return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, f"{text}\n".encode())
    try:
        stacks = _sample(min(max(seconds, 0.0), _LONGEST_PROFILE))
    finally:
        _PROFILING.release()
    lines = "".join(f"{stack} {count}\n" for stack, count in stacks.most_common())
    return Reply(HTTPStatus.OK, TEXT, lines.encode(errors="replace"))


def _sample(seconds: float) -> Counter[str]:
    """Sample the stacks of the other threads; return how often each stack was seen."""
    own = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for ident, frame in sys._current_frames().items():  # noqa: SLF001 - see above
            if ident != own:
                stacks[f"{names.get(ident, ident)};{_folded(frame)}"] += 1
        time.sleep(1 / _SAMPLES_PER_SECOND)
    return stacks


def _folded(frame: FrameType | None) -> str:
    names = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(names))


def _flags(request: PageRequest) -> Reply:
    if request.path not in {"/debug/flags", "/debug/flags/"}:
        return not_found()
    page = (
        "<html><head><title>/debug/flags/</title></head><body>\n"
        "<p>v: the detail of the log; change it with PUT /debug/flags/v</p>\n</body></html>\n"
    )
    return Reply(HTTPStatus.OK, _HTML, page.encode())


def _put_verbosity(request: PageRequest, set_verbosity: Callable[[int], None]) -> Reply:
    if request.method != "PUT":
        text = "unsupported http method; PUT a whole number"
        return Reply(HTTPStatus.NOT_ACCEPTABLE, "text/plain", f"{text}\n".encode())
    value = request.body.decode(errors="replace").strip()
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        text = f"{value!r} is not a whole number from 0 on"
        return Reply(HTTPStatus.BAD_REQUEST, "text/plain", f"{text}\n".encode())
    set_verbosity(int(value))
    text = f"the log's verbosity is {int(value)} now"
    return Reply(HTTPStatus.OK, "text/plain", f"{text}\n".encode())
