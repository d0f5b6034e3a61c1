"""Parses single fields of API objects: ports, lists of addresses, times."""

from collections.abc import Callable, Sequence
from datetime import datetime

from svcproxy import limits
from svcproxy.kube.core.addresses import canonical_cidr
from svcproxy.kube.core.validation import LimitExceededError, shown
from svcproxy.kube.core.wire import ParseError


def check_length(entries: Sequence[object] | None, field: str) -> None:
    """Check the length of a list that the API keeps short.

    Raises:
        LimitExceededError: it has more than ``limits.LIST_ENTRIES``.
    """
    if entries and len(entries) > limits.LIST_ENTRIES:
        reason = f"{len(entries)} entries exceed {limits.LIST_ENTRIES}"
        raise LimitExceededError(field, reason, "list_entries")


def check_port(number: int, field: str) -> None:
    """Check a port number, or 0 for none.

    Raises:
        ParseError: it is out of range.
    """
    if not 0 <= number <= 65535:
        raise ParseError(field, f"{shown(number)} is not between 1 and 65535")


def cidrs_in(texts: list[str] | None, field: str) -> tuple[str, ...]:
    """Read a list of CIDRs; see ``all_canonical``."""
    return all_canonical(canonical_cidr, texts, field)


def all_canonical(
    canonical: Callable[[str], str], texts: list[str] | None, field: str
) -> tuple[str, ...]:
    """Give the canonical spelling of each entry of a list.

    Blank entries, which old API servers accepted, are left out. White space around an entry is
    removed: the API server allows it by mistake in source ranges (``serviceport.go``). For a field
    in the singular (``spec.clusterIP``) the message has no index.

    Args:
        canonical: gives the canonical spelling of one entry, or raises ``ValueError``.
        texts: the entries, or ``None`` for an absent list.
        field: the path of the list, for the message.

    Raises:
        ParseError: an entry has no canonical spelling.
    """
    if not texts:
        return ()
    found = []
    for index, text in enumerate(texts):
        if not text or text.isspace():
            continue
        try:
            found.append(canonical(text.strip()))
        except ValueError as error:
            place = f"{field}[{index}]" if field.endswith("s") else field
            raise ParseError(place, str(error)) from None
    return tuple(found)


def canonical_at(canonical: Callable[[str], str], text: str, field: str) -> str:
    """Give the canonical spelling of an address in a field of its own.

    Raises:
        ParseError: it has none.
    """
    try:
        return canonical(text)
    except ValueError as error:
        raise ParseError(field, str(error)) from error


def timestamp(text: str | None) -> datetime | None:
    """Read RFC 3339 with any number of fractional digits; ``None`` for anything else."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def epoch(text: str | None) -> float:
    """Read RFC 3339 as seconds since 1970; 0.0 for anything else."""
    moment = timestamp(text)
    return moment.timestamp() if moment else 0.0
