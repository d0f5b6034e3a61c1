"""What a client would like to get: the ``Accept`` and ``Accept-Encoding`` headers. Pure."""

from collections.abc import Mapping
from typing import NamedTuple


class Choice(NamedTuple):
    """An entry of such a header: a media type or a coding, in lower case, and its parameters."""

    name: str
    parameters: Mapping[str, str]
    quality: float


def accepted(header: str) -> list[Choice]:
    """Read a header (RFC 9110, 12.5) into its choices, the best first; refused ones are left out.

    What cannot be read in it is skipped: a client with an odd header gets the usual answer.
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
