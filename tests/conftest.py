"""Settings of all tests."""

import os

import pytest
from hypothesis import settings

from testbed.waiting import SLOW
from tests import examples, guests, sessions

# CI decides about a change, so it tries the same examples each time; everybody else explores.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    guests.add_options(parser)
    parser.addoption(
        "--all-scenarios",
        action="store_true",
        help="run every scenario of tests/chaos, not only the quick ones (./dev chaos)",
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help="a tenth of the examples of property tests, and no slow tests (./dev unit)",
    )
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write the output sections of tests/scenarios instead of comparing them",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.quick:
        examples.quick = True
        settings.register_profile("quick", settings(), max_examples=examples.examples(100))
        settings.load_profile("quick")
    plugins = config.pluginmanager
    if config.option.variants:
        plugins.register(guests.Selection(config.option.variants))
    if config.option.report_to:
        plugins.register(sessions.ReportWriter(config, config.option.report_to))
    option = config.option
    if option.member_of:
        plugins.register(sessions.Member(option.member_of, backwards=option.backwards))
    elif not SLOW:
        others = ["--all-scenarios"]  # they get a list of tests
        others += [f"--{name}" for name in ("quick", "regenerate") if config.getoption(name)]
        plugins.register(guests.Distribution(option.uml_variants, option.processes, others))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.quick:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
