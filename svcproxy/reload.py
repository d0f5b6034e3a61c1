"""Detects changes of the configuration file, so that the daemon can restart with it.

As kube-proxy, svcproxy then exits with an error, and its supervisor starts it again with the new
file (source: eventHandler and runLoop in cmd/kube-proxy/app/options.go of Kubernetes 1.36). Unlike
kube-proxy it keeps running if the new file is invalid, because a start with it would fail.
"""

from collections.abc import Callable
from pathlib import Path

import structlog

from svcproxy import limits
from svcproxy.config import ConfigError
from svcproxy.files import UnusableFileError, read_bounded
from svcproxy.stop_signal import StopSignal

_log = structlog.get_logger()

# One stat() per second has no measurable cost and detects every kind of change: a file written in
# place, one replaced by rename, and a symbolic link to a folder that is replaced, which is how the
# kubelet updates a mounted ConfigMap. inotify would need a watch for each component of the path.
_POLL_SECONDS = 1.0

Check = Callable[[bytes], object]


class ConfigFile:
    """A configuration file in use.

    Args:
        path: the path of the file.
        data: its content when the daemon started.
        check: raises ``ConfigError`` for invalid content.
    """

    def __init__(self, path: Path, data: bytes, check: Check) -> None:
        self._path = path
        self._data = data
        self._check = check
        self._seen: object = None

    def wait_changed(self, stop: StopSignal) -> bool:
        """Return ``True`` when the file has changed, ``False`` when ``stop`` is set."""
        while not stop.wait(_POLL_SECONDS):
            if self.changed():
                _log.warning("config.changed", file=str(self._path), effect="exiting to restart")
                return True
        return False

    def changed(self) -> bool:
        """Whether the file has changed and is valid; an invalid file is reported once.

        A missing file has not changed: it may be about to be replaced.
        """
        try:
            status = self._path.stat()
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            data = read_bounded(self._path, limits.CONFIG_BYTES)
        except UnusableFileError as error:
            self._seen = seen
            problem = f"{self._path} {error}"
            _log.error("config.unusable", problem=problem, effect="keeping the current settings")
            return False
        except OSError:
            return False
        self._seen = seen
        if data == self._data:
            return False
        try:
            self._check(data)
        except ConfigError as error:
            for problem in error.problems:
                _log.error(
                    "config.unusable", problem=problem, effect="keeping the current settings"
                )
            return False
        return True
