"""Notices that the configuration file says something else, so that the daemon can start anew.

kube-proxy ends with an error then, for its supervisor to start it with the new file (source:
eventHandler and runLoop in cmd/kube-proxy/app/options.go of Kubernetes 1.36), and so do we. Unlike
kube-proxy we go on if the new file could not be used, as a start with it would fail.
"""

from collections.abc import Callable
from pathlib import Path

import structlog

from svcproxy import limits
from svcproxy.config import ConfigError
from svcproxy.files import UnusableFileError, read_bounded
from svcproxy.stop_signal import StopSignal

_log = structlog.get_logger()

# A call of stat() each second costs nothing that could be measured, and it sees every kind of
# change in the same way: written in place, another file renamed over it, and the link to a folder
# replaced by which the kubelet updates a mounted ConfigMap, where inotify would need a watch for
# every step of the path.
_LOOK_SECONDS = 1.0

Check = Callable[[bytes], object]


class ConfigFile:
    """A configuration file that is in use.

    Args:
        path: where it is.
        data: what it said when it was read.
        check: raises ``ConfigError`` for what cannot be used.
    """

    def __init__(self, path: Path, data: bytes, check: Check) -> None:
        self._path = path
        self._data = data
        self._check = check
        self._seen: object = None

    def wait_changed(self, stop: StopSignal) -> bool:
        """Return ``True`` once the file says something else, ``False`` once ``stop`` is set."""
        while not stop.wait(_LOOK_SECONDS):
            if self.changed():
                _log.warning("config.changed", file=str(self._path), effect="ending, to start anew")
                return True
        return False

    def changed(self) -> bool:
        """Whether the file says something else that can be used; what cannot be is reported once.

        A file that is gone for the moment has not changed.
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
            _log.error("config.unusable", problem=problem, effect="going on as before")
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
                _log.error("config.unusable", problem=problem, effect="going on as before")
            return False
        return True
