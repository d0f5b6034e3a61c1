"""Running iptables programs: limits on time and output, encodings, and kinds of failures."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from svcproxy.backends.base import BackendError
from svcproxy.backends.xtables import commands
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.model.names import IPFamily

Make = Callable[[str], Iptables]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A factory of programs that all run the same shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str) -> Iptables:
        for action in ("", "-save", "-restore"):
            path = tmp_path / f"iptables-nft{action}"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        return Iptables(Variant.NFT, IPFamily.IPV4)

    return make


def test_bytes_are_read_and_written_unchanged(programs: Make, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    made = programs(
        f"if [ \"$1\" = --noflush ]; then cat > {copy}; else printf 'a\\377\\r\\nb'; fi"
    )
    text = made.save("nat")
    assert text == "a\udcff\r\nb"
    made.restore(text)
    assert copy.read_bytes() == b"a\xff\r\nb"


def test_large_inputs_and_outputs_are_transferred(programs: Make) -> None:
    made = programs(
        'if [ "$1" = --noflush ]; then cat >&2; exit 2; else head -c 3000000 /dev/zero; fi'
    )
    assert len(made.save("nat")) == 3_000_000
    with pytest.raises(RestoreRefused) as caught:
        made.restore("x" * 3_000_000)
    assert len(str(caught.value)) < 1000


def test_a_program_with_endless_output_is_killed(
    programs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "IPTABLES_SAVE_BYTES", 1_000_000)
    with pytest.raises(BackendError, match="printed more than 1000000 bytes"):
        programs("exec cat /dev/zero").save("nat")


@pytest.mark.parametrize("script", ["exec sleep 60", "exec >&- 2>&- <&-; exec sleep 60"])
def test_a_program_that_hangs_is_killed(
    programs: Make, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(commands, "IPTABLES_PROGRAM_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(BackendError, match=r"did not end within 0\.2 s"):
        programs(script).restore("x" * 3_000_000)
    assert time.monotonic() - begin < 30


def test_the_error_of_a_program_that_ignores_its_input_is_reported(programs: Make) -> None:
    with pytest.raises(BackendError, match="no such option"):
        programs("echo no such option >&2; exit 2").restore("x" * 3_000_000)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'Another app is currently holding the xtables lock' >&2; exit 4",
        "kill -9 $$",
    ],
)
def test_a_failure_without_regard_to_the_input_is_not_a_refusal(
    programs: Make, script: str
) -> None:
    with pytest.raises(BackendError) as caught:
        programs(script).restore("*nat\nCOMMIT\n")
    assert not isinstance(caught.value, RestoreRefused)


def test_a_missing_program_is_a_failure(programs: Make, tmp_path: Path) -> None:
    made = programs("exit 0")
    (tmp_path / "iptables-nft-restore").unlink()
    with pytest.raises(BackendError, match="No such file"):
        made.restore("*nat\nCOMMIT\n")
