"""A real browser without a window: screenshots, and pages as it understood them."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from testbed.netns import NetNS

_PROGRAM = "chromium"
_SECONDS = 60.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the test bed runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
_CONSOLE = re.compile(r'CONSOLE:\d+\] "(?!.*source: chrome://)(.*)')


class BrowserError(Exception):
    """The browser failed; the message ends with its output."""


class Seen(NamedTuple):
    """A page as the browser understood it.

    Attributes:
        html: the document, serialised.
        console: the messages on its console: errors and violations of its policy.
    """

    html: str
    console: tuple[str, ...]


class Browser:
    """Chromium in a network namespace.

    Args:
        space: the namespace.
    """

    def __init__(self, space: NetNS) -> None:
        self._space = space

    def open(self, url: str) -> Seen:
        """Open a page, and return what the browser made of it."""
        done = self._run("--dump-dom", url)
        return Seen(done.stdout, _console(done.stderr))

    def screenshot(
        self, url: str, file: Path, size: tuple[int, int], *, dark: bool = False
    ) -> tuple[str, ...]:
        """Write a screenshot to a PNG file; return the messages on the console.

        Args:
            url: the address of the page.
            file: where to write it.
            size: width and height of the window, in pixels.
            dark: whether the user prefers dark colours.
        """
        scheme = "0" if dark else "1"  # mojom::PreferredColorScheme
        done = self._run(
            f"--screenshot={file}",
            f"--window-size={size[0]},{size[1]}",
            f"--blink-settings=preferredColorScheme={scheme}",
            url,
        )
        if not file.exists():
            raise BrowserError(f"no screenshot of {url}:\n{done.stderr[-2000:]}")
        return _console(done.stderr)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        profile = tempfile.mkdtemp(prefix="svcproxy-browser-")
        try:
            command = [_PROGRAM, *_FLAGS, f"--user-data-dir={profile}", *arguments]
            done = self._space.run(*command, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrowserError(f"{_PROGRAM}: {error}") from error
        finally:
            shutil.rmtree(profile, ignore_errors=True)
        if done.returncode:
            raise BrowserError(f"{_PROGRAM} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done


def _console(log: str) -> tuple[str, ...]:
    """Return the messages on the console of pages; those of the browser's own pages are left out."""
    return tuple(_CONSOLE.findall(log))
