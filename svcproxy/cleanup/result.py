"""The result of a clean-up; this module loads none of those that carry it out."""

from collections.abc import Mapping

import msgspec
import structlog

log = structlog.get_logger()


class CleanupResult(msgspec.Struct, frozen=True):
    """What a clean-up did.

    Attributes:
        removed: the number of removed objects by kind.
        problems: a line for each failure.
    """

    removed: Mapping[str, int]
    problems: tuple[str, ...]


def report(result: CleanupResult, remedy: str) -> None:
    """Log what a clean-up removed, and what it could not remove.

    Args:
        result: what it did.
        remedy: what the operator can do about failures.
    """
    removed = {kind: count for kind, count in result.removed.items() if count}
    if removed:
        log.info("cleanup.removed", **removed)
    for problem in result.problems:
        log.warning("cleanup.not_removed", error=problem, remedy=remedy)
