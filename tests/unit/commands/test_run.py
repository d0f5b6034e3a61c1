"""The frame of the commands: dispatch, help, errors and exit codes."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.registry import COMMANDS, load
from svcproxy.commands.run import build_parser
from svcproxy.main import main

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(*arguments: str, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "svcproxy", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_examples(name: str) -> None:
    text = build_parser(name).format_help()
    assert re.search(rf"^  svcproxy {name}\b", text, re.MULTILINE)
    assert load(name).EXAMPLES.endswith("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_malformed_argument_is_one_line_with_a_remedy(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--no-such-option"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert f"svcproxy {name} --help" in line


def test_an_unknown_command_is_answered_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["shwo"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean show?" in line


def test_control_characters_in_an_argument_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["\x1b[2Jshow"]) == ExitCode.USAGE
    assert "\x1b" not in capsys.readouterr().err


def test_without_a_daemon_the_remedy_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", f"--socket={tmp_path}/none"]) == ExitCode.NO_DAEMON
    (line,) = capsys.readouterr().err.splitlines()
    assert "start svcproxy" in line
    assert "--socket" in line


def test_a_socket_of_a_dead_daemon_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert main(["show", f"--socket={path}"]) == ExitCode.NO_DAEMON
    assert "no daemon listens" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error() -> None:
    end, pipe = os.pipe()
    os.close(end)
    done = run("show", f"--manifests={EXAMPLES}", stdout=pipe)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")


def test_manifests_need_no_daemon() -> None:
    done = run("show", f"--manifests={EXAMPLES}", "--", "--proxy-mode=nftables")
    assert done.returncode == ExitCode.OK
    assert "default/web" in done.stdout


def test_a_malformed_daemon_flag_is_named() -> None:
    done = run("show", f"--manifests={EXAMPLES}", "--", "--proxy-mode=nftabels")
    assert done.returncode == ExitCode.USAGE
    assert "--proxy-mode" in done.stderr


def test_help_of_the_daemon_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", text, re.MULTILINE)
