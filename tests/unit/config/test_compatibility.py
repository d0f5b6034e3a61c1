"""Compares flags and fields with the tables in docs/compatibility.md and with kube-proxy's."""

import re

import pytest

from svcproxy.config import FLAGS, default_of
from svcproxy.config.file_fields import FIELDS
from tests.fakes.compatibility import rows
from tests.unit.config.test_file import FILES

FLAG_ROWS = rows("Flags", columns=3)
FIELD_ROWS = rows("Configuration fields", columns=3)
_VERDICT = re.compile(r"same\b|better: \S|not applicable, because \S")
# Flags and fields that argparse and the decoder handle themselves
_FLAGS_TOO, _FIELDS_TOO = {"--help", "--version"}, {"apiVersion", "kind"}
_OURS = {name for name in FLAGS if name.startswith("svcproxy-")} | {"manifests"}


def test_the_table_lists_exactly_the_flags() -> None:
    named = [name for name, _, _ in FLAG_ROWS]
    assert len(set(named)) == len(named)
    assert set(named) == {f"--{name}" for name in FLAGS} | _FLAGS_TOO


def test_the_defaults_in_the_table_are_those_of_the_flags() -> None:
    shown = {name: default for name, default, _ in FLAG_ROWS if name not in _FLAGS_TOO}
    assert shown == {f"--{name}": default_of(flag) for name, flag in FLAGS.items()}


def test_the_table_lists_exactly_the_fields() -> None:
    named = [path for path, _, _ in FIELD_ROWS]
    assert len(set(named)) == len(named)
    assert set(named) == set(FIELDS) | _FIELDS_TOO


def test_fields_and_flags_in_a_row_set_the_same() -> None:
    for path, flag, _ in FIELD_ROWS:
        if flag:
            (field,) = FIELDS[path].setting.fields
            assert field in FLAGS[flag.removeprefix("--")].setting.fields, path


@pytest.mark.parametrize("row", [*FLAG_ROWS, *FIELD_ROWS], ids=lambda row: row[0])
def test_every_row_has_a_verdict(row: tuple[str, str, str]) -> None:
    name, _, verdict = row
    assert name.removeprefix("--") in _OURS or _VERDICT.match(verdict)


def test_settings_without_effect_are_not_called_the_same() -> None:
    """Except deprecated flags, which set another one, and a field without effect in kube-proxy."""
    inert = {f"--{name}" for name, flag in FLAGS.items() if not flag.setting.fields}
    inert |= {path for path, field in FIELDS.items() if not field.setting.fields}
    same = {name for name, _, verdict in (*FLAG_ROWS, *FIELD_ROWS) if verdict.startswith("same")}
    assert inert & same == {"--healthz-port", "portRange"}


def test_all_flags_of_kube_proxy_exist() -> None:
    """The file lists the flags of ``kube-proxy --help`` (1.36.2) and two hidden deprecated ones."""
    theirs = set((FILES / "kube-proxy-flags.txt").read_text(encoding="utf-8").split())
    windows = {name for name, flag in FLAGS.items() if "Windows" in flag.setting.warn}
    assert set(FLAGS) - _OURS - windows == theirs - {"help", "version"}
    assert len(windows) == 6
