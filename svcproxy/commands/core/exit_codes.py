"""The exit codes of the commands."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes that scripts may rely on; ``docs/commands.md`` documents them."""

    OK = 0
    """The command was carried out. For ``trace``: delivered; for ``diff``: no difference."""
    DIFFERENT = 1
    """``diff``: the kernel differs. ``trace``: refused or dropped, or probe and prediction differ."""
    USAGE = 2
    """The command line is malformed, or an input cannot be used."""
    NOT_FOUND = 3
    """There is no such Service, pod or node; for ``trace``: the destination is not a Service."""
    NO_DAEMON = 4
    """No daemon runs, or it does not answer."""
    NOT_PERMITTED = 5
    """The socket or the kernel may not be read: run as root."""
    OTHER_VERSION = 6
    """The daemon is of another version."""
    KERNEL = 7
    """The kernel state could not be read."""
    INTERRUPTED = 130
    """SIGINT, as in shells."""


class CommandError(Exception):
    """A command ends with a message of one line, which names the remedy, and an exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code
