"""HTTP content negotiation: parses ``Accept`` and ``Accept-Encoding`` headers. Pure."""

from collections.abc import Mapping
from typing import NamedTuple


class Choice(NamedTuple):
    """One entry of such a header.

    ``name`` is the media type or content coding in lower case, ``parameters`` are those besides
    ``q``, ``quality`` is the value of ``q``.
    """

    name: str
    parameters: Mapping[str, str]
    quality: float


def accepted(header: str) -> list[Choice]:
    """Parse a header (RFC 9110, section 12.5) into its choices, best first.

    Choices with quality 0 and malformed entries are left out: a client with a malformed header
    gets the default representation.
    """
    choices = [_choice(entry) for entry in header.split(",") if entry.strip()]
    return sorted(
        (choice for choice in choices if choice.quality > 0),
        key=lambda choice: choice.quality,
        reverse=True,
    )


def _choice(entry: str) -> Choice:
    name, *rest = (part.strip() for part in entry.split(";"))
    parameters = {}
    for part in rest:
        key, _, value = part.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"')
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 0.0
    return Choice(name.lower(), parameters, quality)
