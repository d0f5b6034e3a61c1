"""``svcproxy bundle`` where no daemon runs."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from svcproxy import __version__
from svcproxy.commands import bundle
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.main import main


def files(path: Path) -> dict[str, str]:
    """Return the texts of the files in a bundle, by name without the folder."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            assert member.mode == 0o600
            found[member.name.partition("/")[2]] = file.read().decode()
        return found


def test_without_a_daemon_the_rest_is_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle.tar.gz"
    assert main(["bundle", f"--file={path}", "--socket=/nonexistent", "-o", "json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    found = files(path)
    assert (document["kind"], document["path"]) == ("Bundle", str(path))
    assert document["files"] == list(found)
    assert document["size"] == path.stat().st_size
    assert json.loads(found["version.json"])["svcproxy"] == __version__
    assert "net/ipv4/ip_forward" in found["kernel.txt"]
    assert "daemon: no daemon" in found["errors.txt"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_default_name_has_node_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "--socket=/nonexistent"]) == ExitCode.OK
    (path,) = tmp_path.glob("svcproxy-bundle-*-20*Z.tar.gz")
    with tarfile.open(path) as archive:
        folder = archive.getnames()[0].partition("/")[0]
    assert path.name == f"{folder}.tar.gz"


def test_hashed_names_are_not_in_the_name_of_the_file_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "--socket=/nonexistent", "--hash-names"]) == ExitCode.OK
    (path,) = tmp_path.iterdir()
    assert f"-{os.uname().nodename.lower()}-" not in path.name


def test_it_is_written_to_stdout(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    with path.open("wb") as file:
        command = [sys.executable, "-m", "svcproxy", "bundle", "--socket=/nonexistent", "--file=-"]
        subprocess.run(command, stdout=file, check=True, timeout=60)
    assert "version.json" in files(path)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "none" / "bundle.tar.gz"):
        code = main(["bundle", f"--file={path}", "--socket=/nonexistent"])
        assert code == ExitCode.USAGE
        assert "name another --file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_large_parts_are_cut_at_a_line_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_PART_BYTES", 100)
    monkeypatch.setattr(bundle, "_TOTAL_BYTES", 150)
    text = "0123456789\n" * 20
    cut = dict(bundle._bounded([("a", text), ("b", "short\n"), ("c", text), ("d", text)]))
    assert cut["a"] == text[:99].encode() + b"# cut: 99 of 220 bytes\n"
    assert cut["b"] == b"short\n"
    assert cut["c"].endswith(b"of 220 bytes\n")
    assert cut["d"] == b"# cut: 0 of 220 bytes\n"
