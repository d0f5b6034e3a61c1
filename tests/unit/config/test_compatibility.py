"""The flags and fields against the tables in docs/compatibility.md, and against kube-proxy's own."""

import re

import pytest

from svcproxy.config import FLAGS, default_of
from svcproxy.config.fields import FIELDS
from tests.fakes.compatibility import rows
from tests.unit.config.test_file import FILES

FLAG_ROWS = rows("Flags", columns=3)
FIELD_ROWS = rows("Configuration fields", columns=3)
_VERDICT = re.compile(r"same\b|better: \S|not applicable, because \S")
# What argparse or the decoder answers by itself
_FLAGS_TOO, _FIELDS_TOO = {"--help", "--version"}, {"apiVersion", "kind"}
_OURS = {name for name in FLAGS if name.startswith("svcproxy-")} | {"manifests"}


def test_every_flag_is_in_the_table_and_the_reverse() -> None:
    named = [name for name, _, _ in FLAG_ROWS]
    assert len(set(named)) == len(named)
    assert set(named) == {f"--{name}" for name in FLAGS} | _FLAGS_TOO


def test_the_defaults_in_the_table_are_those_of_the_flags() -> None:
    shown = {name: default for name, default, _ in FLAG_ROWS if name not in _FLAGS_TOO}
    assert shown == {f"--{name}": default_of(flag) for name, flag in FLAGS.items()}


def test_every_field_is_in_the_table_and_the_reverse() -> None:
    named = [path for path, _, _ in FIELD_ROWS]
    assert len(set(named)) == len(named)
    assert set(named) == set(FIELDS) | _FIELDS_TOO


def test_the_flags_that_fields_resemble() -> None:
    for path, flag, _ in FIELD_ROWS:
        if flag:
            (field,) = FIELDS[path].setting.fields
            assert field in FLAGS[flag.removeprefix("--")].setting.fields, path


@pytest.mark.parametrize("row", [*FLAG_ROWS, *FIELD_ROWS], ids=lambda row: row[0])
def test_every_row_has_a_verdict(row: tuple[str, str, str]) -> None:
    name, _, verdict = row
    assert name.removeprefix("--") in _OURS or _VERDICT.match(verdict)


def test_what_fills_nothing_is_not_called_the_same() -> None:
    """But for deprecated flags, which act by another one, and a field without meaning there."""
    inert = {f"--{name}" for name, flag in FLAGS.items() if not flag.setting.fields}
    inert |= {path for path, field in FIELDS.items() if not field.setting.fields}
    same = {name for name, _, verdict in (*FLAG_ROWS, *FIELD_ROWS) if verdict.startswith("same")}
    assert inert & same == {"--healthz-port", "portRange"}


def test_the_flags_of_kube_proxy_are_all_there() -> None:
    """The file holds what ``kube-proxy --help`` of 1.36.2 lists, and the deprecated two it hides."""
    theirs = set((FILES / "kube-proxy-flags.txt").read_text(encoding="utf-8").split())
    windows = {name for name, flag in FLAGS.items() if "Windows" in flag.setting.warn}
    assert set(FLAGS) - _OURS - windows == theirs - {"help", "version"}
    assert len(windows) == 6
