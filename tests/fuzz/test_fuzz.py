"""Every fuzz target: the known inputs, then a short run; ``./dev fuzz`` is for long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import catalogue

SECONDS = 50
SEED = 1
ROOT = Path(catalogue.__file__).parent.parent


@pytest.mark.parametrize("name", catalogue.names())
def test_target_passes_its_seeds_and_corpus(name: str) -> None:
    target = catalogue.load(name)
    assert target.seeds
    for label, data in target.inputs():
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"{name}, {label}: {data[:2048].hex()}")
            raise


def test_every_folder_of_the_corpus_has_a_target() -> None:
    folders = {path.name for path in catalogue.CORPUS.iterdir() if path.is_dir()}
    assert folders <= set(catalogue.names())


@pytest.mark.timeout(400)
def test_short_run_finds_nothing() -> None:
    """The output, which is shown on failure, holds each finding in hex and how to replay it."""
    command = [sys.executable, "-m", "fuzz", "--seconds", str(SECONDS), "--seed", str(SEED)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_finding_is_kept_and_shown(tmp_path: Path) -> None:
    """A target of its own, which fails on one input, in a copy of the fuzzer."""
    package = tmp_path / "fuzz"
    (package / "targets").mkdir(parents=True)
    (package / "corpus").mkdir()
    for module in ("__init__", "__main__", "catalogue", "engines"):
        source = catalogue.FOLDER / f"{module}.py"
        (package / f"{module}.py").write_text(source.read_text())
    (package / "targets" / "__init__.py").write_text("")
    (package / "targets" / "bad.py").write_text(
        'SEEDS = (b"hello",)\n\n\ndef check(data):\n    assert not data.startswith(b"hell")\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bad: FINDING, 5 bytes: 68656c6c6f\n" in done.stdout
    replay = next(line for line in done.stdout.splitlines() if "replay:" in line).split()
    assert (tmp_path / replay[-2]).read_bytes() == b"hello"
