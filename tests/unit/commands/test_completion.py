"""Shell completion, in a real bash with readline."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy import cli
from svcproxy.commands.completion import _VALUES, _daemon
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.registry import COMMANDS
from svcproxy.config import FLAGS
from svcproxy.main import main
from testbed.waiting import PATIENCE

_PROMPT = "ready> "


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert main(["completion", shell]) == ExitCode.OK
    return capsys.readouterr().out


class Bash:
    """An interactive bash that prints the words of each command line with ``svcproxy``."""

    def __init__(self, folder: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            environment = {"PATH": os.environ["PATH"], "PS1": _PROMPT, "TERM": "dumb"}
            os.execve(
                shutil.which("bash") or "", ["bash", "--norc", "--noprofile", "-i"], environment
            )
        self._read()
        self.run("bind 'set bell-style none'; bind 'set enable-bracketed-paste off'")
        self.run("source ./completion.bash")
        services = "[[ $* == 'completion services' ]] && echo default/web && return"
        self.run(f"svcproxy() {{ {services}; printf '<%s>' \"$@\"; echo; }}")

    def _read(self) -> str:
        """Return the output up to the next prompt."""
        text, deadline = "", time.monotonic() + PATIENCE
        while not text.endswith(_PROMPT):
            ready, _, _ = select.select([self._terminal], [], [], deadline - time.monotonic())
            assert ready, f"no prompt: {text!r}"
            text += os.read(self._terminal, 4096).decode()
        return text

    def run(self, line: str) -> str:
        os.write(self._terminal, f"{line}\n".encode())
        return self._read()

    def words(self, line: str) -> list[str]:
        """Return the words of a line in which a tabulator completes a word."""
        return re.findall(r"<(.*?)>", self.run(line))

    def close(self) -> None:
        os.close(self._terminal)
        os.waitpid(self._pid, 0)


@pytest.fixture
def bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bash]:
    (tmp_path / "completion.bash").write_text(script(capsys, "bash"))
    (tmp_path / "manifests").mkdir()
    (tmp_path / "mfile").touch()
    made = Bash(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("svcproxy ren\t", ["render"]),
        ("svcproxy render --mo\t nf\t", ["render", "--mode", "nftables"]),
        ("svcproxy render --mode=nf\t", ["render", "--mode=nftables"]),
        (
            "svcproxy render --mode al\t --man\tm\t",
            ["render", "--mode", "all", "--manifests", "manifests"],
        ),
        ("svcproxy show def\t", ["show", "default/web"]),
        ("svcproxy show -o j\t d\t", ["show", "-o", "json", "default/web"]),
        ("svcproxy completion fi\t", ["completion", "fish"]),
        ("svcproxy --proxy-m\tnft\t", ["--proxy-mode=nftables"]),
        ("svcproxy show -- --proxy-m\tip\tv\t", ["show", "--", "--proxy-mode=ipvs"]),
        ("svcproxy --cleanup --masq\t", ["--cleanup", "--masquerade-all"]),
        ("svcproxy nosuch x\t", ["nosuch", "x"]),
    ],
)
def test_bash_completes(bash: Bash, line: str, expected: list[str]) -> None:
    assert bash.words(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_flag(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    text = script(capsys, shell)
    for name in (*COMMANDS, *(flag.option for flag in FLAGS.values())):
        word = name.lstrip("-") if shell == "fish" else name
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), name


@pytest.mark.parametrize("name", _VALUES)
def test_the_daemon_accepts_the_values_that_are_completed(name: str) -> None:
    assert name in {option.names[0][2:] for option in _daemon().options}
    also = ["--pod-bridge-interface=a", "--pod-interface-name-prefix=b"]
    for value in _VALUES[name]:
        cli.parse([f"--{name}={value}", "--manifests=.", *also], {})


def test_without_a_daemon_there_are_no_names_and_no_error() -> None:
    command = [sys.executable, "-m", "svcproxy", "completion", "services", "--socket=/nonexistent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == done.stderr == ""
