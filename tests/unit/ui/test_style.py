"""The style sheet: contrast as WCAG 2.2 AA requires, and nothing from elsewhere."""

import re
from importlib.resources import files

import pytest

STYLE = files("svcproxy.ui").joinpath("style.css").read_text(encoding="utf-8")
AA = 4.5
"""The ratio for texts of normal size."""
GRAPHICS = 3.0
"""The ratio for parts of graphics and borders of input fields."""

PAIRS = (
    *((text, back) for text in ("text", "muted", "accent") for back in ("page", "surface")),
    ("text", "raised"),
    ("surface", "accent"),
    *((meaning, f"{meaning}-back") for meaning in ("good", "warning", "bad")),
)


def colours(scheme: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    text = light if scheme == "light" else dark
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", text))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "back"), PAIRS)
def test_texts_have_enough_contrast(scheme: str, text: str, back: str) -> None:
    found = colours(scheme)
    assert contrast(found[text], found[back]) >= AA


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("part", ["bar", "muted"])
def test_graphics_have_enough_contrast(scheme: str, part: str) -> None:
    found = colours(scheme)
    assert contrast(found[part], found["surface"]) >= GRAPHICS


def test_both_schemes_have_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert not re.search(r"@import|url\(|@font-face|//", STYLE)


def test_known_contrasts() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
