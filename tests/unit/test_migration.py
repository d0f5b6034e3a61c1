"""docs/migration.md names only files, flags, metrics and log events that exist."""

import re
from pathlib import Path

import pytest
import yaml

from svcproxy.config.flags import FLAGS
from svcproxy.observe.exposition import render
from svcproxy.observe.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/migration.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_file_exists() -> None:
    linked = {PAGE.parent / target for target in re.findall(r"\]\(([^)#]+)\)", TEXT)}
    named = {ROOT / name for name in re.findall(r"\b(?:deploy|tests)/[\w/.-]*\w", TEXT)}
    assert linked
    assert named
    assert not [path for path in linked | named if not path.exists()]


def test_every_section_referred_to_exists() -> None:
    titles = {
        title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= titles


def test_every_metric_exists() -> None:
    scrape = render(Metrics().registry).body.decode()
    names = set(re.findall(r"\b(?:svcproxy|kubeproxy)_[a-z_]+[a-z]", TEXT))
    (pattern,) = re.findall(r"grep -E 'svcproxy_\(([^)]+)\)'", TEXT)
    names |= {f"svcproxy_{end}" for end in pattern.split("|")}
    assert [name for name in names if name not in scrape] == []


def test_every_log_line_exists() -> None:
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "svcproxy").rglob("*.py"))
    cells = re.findall(r"^\| (log: .+?) \|(.*)\|$", TEXT, re.MULTILINE)
    events = re.findall(r"`([a-z_]+\.[a-z_]+)[^`]*`", "".join(map("".join, cells)))
    assert {"sync.failed", "cleanup.removed", "object.skipped"} <= set(events)
    assert [event for event in events if f'"{event}"' not in sources] == []


def test_every_flag_exists() -> None:
    commands = re.findall(r"(?:(?<![=/-])svcproxy|\./dev run) (--.+)$", TEXT, re.MULTILINE)
    flags = {flag for command in commands for flag in re.findall(r"--([a-z-]+)", command)}
    assert {"cleanup", "config", "write-config-to"} <= flags
    assert flags <= set(FLAGS)


@pytest.mark.parametrize("overlay", sorted(p.name for p in ROOT.glob("deploy/overlays/*")))
def test_every_overlay_is_mentioned(overlay: str) -> None:
    assert f"overlays/{overlay}" in TEXT or f"…/{overlay}" in TEXT


def test_the_patches_are_yaml() -> None:
    patches = re.findall(r"--patch '\n(.+?)'", TEXT, re.DOTALL)
    assert patches
    for patch in patches:
        assert set(yaml.safe_load(patch)) == {"spec"}
