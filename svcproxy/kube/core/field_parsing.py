"""Parses single fields of API objects: ports, address lists, timestamps."""

from collections.abc import Callable, Sequence
from datetime import datetime

from svcproxy import limits
from svcproxy.kube.core.addresses import canonical_cidr
from svcproxy.kube.core.validation import LimitExceededError, quoted
from svcproxy.kube.core.wire import ParseError


def check_list_length(entries: Sequence[object] | None, field: str) -> None:
    """Check the length of a list that is short in valid objects.

    Raises:
        LimitExceededError: the list has more than ``limits.LIST_ENTRIES`` entries.
    """
    if entries and len(entries) > limits.LIST_ENTRIES:
        reason = f"{len(entries)} entries exceed {limits.LIST_ENTRIES}"
        raise LimitExceededError(field, reason, "list_entries")


def check_port(number: int, field: str) -> None:
    """Check a port number; 0 means none.

    Raises:
        ParseError: the number is out of range.
    """
    if not 0 <= number <= 65535:
        raise ParseError(field, f"{quoted(number)} is not between 1 and 65535")


def parse_cidrs_field(texts: list[str] | None, field: str) -> tuple[str, ...]:
    """Parse a list of CIDRs; see ``parse_address_list``."""
    return parse_address_list(canonical_cidr, texts, field)


def parse_address_list(
    canonical: Callable[[str], str], texts: list[str] | None, field: str
) -> tuple[str, ...]:
    """Return the canonical spelling of each entry of a list.

    Blank entries, which old API servers accepted, are skipped. White space around an entry is
    removed: the API server accepts it in source ranges by mistake (``serviceport.go``). For a field
    in the singular (``spec.clusterIP``) the message has no index.

    Args:
        canonical: returns the canonical spelling of one entry, or raises ``ValueError``.
        texts: the entries, or ``None`` for an absent list.
        field: the path of the list, for the message.

    Raises:
        ParseError: an entry is malformed.
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


def parse_address_field(canonical: Callable[[str], str], text: str, field: str) -> str:
    """Return the canonical spelling of the address in a field.

    Raises:
        ParseError: the address is malformed.
    """
    try:
        return canonical(text)
    except ValueError as error:
        raise ParseError(field, str(error)) from error


def parse_timestamp(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time with any number of fractional digits; ``None`` for other text."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def parse_epoch_seconds(text: str | None) -> float:
    """Parse an RFC 3339 time to seconds since 1970; 0.0 for other text."""
    moment = parse_timestamp(text)
    return moment.timestamp() if moment else 0.0
