"""The flags of accounting."""

import pytest

from svcproxy.config import Config, ConfigError, flags_of, from_settings
from svcproxy.config.parsing import parse_services
from svcproxy.model.names import NamespacedName


def test_services_are_a_list_of_names() -> None:
    assert parse_services("") == ()
    assert parse_services("a/b, c/d,a/b") == (NamespacedName("a", "b"), NamespacedName("c", "d"))


@pytest.mark.parametrize("text", ["web", "a/b/c", "/web", "a/", "a/b,\x1b[2J"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="namespace/name") as caught:
        parse_services(text)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("level", ["", "all", "Connections"])
def test_an_unknown_level_is_refused(level: str) -> None:
    with pytest.raises(ConfigError, match="none, refusals, connections"):
        from_settings({"svcproxy-accounting": level})


def test_the_flags_are_shown_as_they_are_given() -> None:
    given = {"svcproxy-accounting": "refusals", "svcproxy-service-metrics": "a/b,c/d"}
    shown = flags_of(from_settings(given).config)
    assert {name: shown[name] for name in given} == given
    assert flags_of(Config())["svcproxy-service-metrics"] == ""


def test_settings_without_effect_are_a_warning() -> None:
    loaded = from_settings({"svcproxy-service-metrics": "a/b", "svcproxy-refusal-log-group": "5"})
    assert len(loaded.warnings) == 2
    assert all("--svcproxy-accounting" in line for line in loaded.warnings)
    given = {"svcproxy-service-metrics": "a/b", "svcproxy-accounting": "refusals"}
    assert not from_settings(given).warnings
