"""The file of the admin socket: made so that only root can open it, and replaced with care."""

import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_BACKLOG = 64

_Identity = tuple[int, int]


class SocketPlace:
    """The path at which a daemon listens.

    During an upgrade two daemons may use the same path: the newer one takes it, and the older one
    leaves it alone from then on. So a daemon removes the file only if it is its own.

    Args:
        path: the path of the socket.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._own: _Identity | None = None

    def listen(self) -> socket.socket:
        """Create the socket, and replace that of an earlier daemon; return it, listening.

        The socket is created in a directory that only this user may enter, and appears at the path
        with its final mode, so no other user can open it at any moment.

        Raises:
            OSError: the directory cannot be written to, or something else is at the path.
        """
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._found() not in {None, stat.S_IFSOCK}:
            raise FileExistsError(17, "something other than a socket is there", str(self._path))
        private = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        new = private / "s"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(new))
            new.chmod(0o600)
            sock.listen(_BACKLOG)
            own = _identity(new)
            new.rename(self._path)
        except BaseException:
            sock.close()
            raise
        finally:
            new.unlink(missing_ok=True)
            private.rmdir()
        self._own = own
        return sock

    def served(self) -> bool:
        """Return whether a daemon, this or another one, listens at the path."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(str(self._path))
            except BlockingIOError:  # its queue is full
                return True
            except OSError:
                return False
        return True

    def replaced(self) -> bool:
        """Return whether another daemon has replaced this daemon's socket."""
        with suppress(OSError):
            return self._own is not None and _identity(self._path) != self._own
        return False

    def missing(self) -> bool:
        """Return whether there is no socket at the path, neither this daemon's nor another's."""
        return self._found() is None

    def remove(self) -> None:
        """Remove the socket, unless it belongs to another daemon by now."""
        with suppress(OSError):
            if self._own is not None and _identity(self._path) == self._own:
                self._path.unlink()
        self._own = None

    def _found(self) -> int | None:
        """Return the type of the file at the path; ``None`` if there is none."""
        try:
            return stat.S_IFMT(self._path.lstat().st_mode)
        except FileNotFoundError:
            return None


def _identity(path: Path) -> _Identity:
    """Return what identifies a file. A socket's is not reused while the socket is open."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino
