"""Quantiles, and formatting of figures."""

from collections.abc import Iterable, Sequence


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed.

    The result is always a measured value: with a dozen values, interpolation would suggest more
    precision than there is.

    Raises:
        ValueError: there are no values, or the share is not above 0 and up to 1.
    """
    ordered = sorted(values)
    if not ordered or not 0 < share <= 1:
        raise ValueError("quantiles need values, and a share above 0 and up to 1")
    # Without rounding, a floating-point error would make 0.9 of 10 values the tenth.
    rank = -int(-round(share * len(ordered), 9) // 1)
    return ordered[rank - 1]


def median(values: Iterable[float]) -> float:
    """Return the 0.5 quantile."""
    return quantile(values, 0.5)


def seconds(value: float) -> str:
    """Format a duration: ``85 µs``, ``8.3 ms``, ``831 ms``, ``7.46 s``, ``156 s``."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 0.01:
        return f"{value * 1e3:.1f} ms"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def megabytes(size: float) -> str:
    """Format a size in millions of bytes."""
    return f"{size / 1e6:.0f} MB"


def count(value: float) -> str:
    """Format a number: ``60,698``, ``34.6``."""
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.1f}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table: the first column is left-aligned, all others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])],
        ).rstrip()
        for row in rows
    ]
