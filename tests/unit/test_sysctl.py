"""Kernel parameters, in a directory in place of /proc/sys."""

from pathlib import Path

from structlog.testing import capture_logs

from svcproxy import sysctl
from svcproxy.model.sysctl import Sysctl

FORWARD = Sysctl("net/ipv4/ip_forward", 1, "pods on other nodes cannot be reached")


def test_only_a_different_value_is_written(tmp_path: Path) -> None:
    (tmp_path / "right").write_text("1\n")
    (tmp_path / "wrong").write_text("0\n")
    before = (tmp_path / "right").stat().st_mtime_ns
    sysctl.ensure_all([Sysctl("right", 1, ""), Sysctl("wrong", 1, "")], tmp_path)
    assert (tmp_path / "wrong").read_text() == "1"
    assert (tmp_path / "right").stat().st_mtime_ns == before


def test_a_failure_is_logged_once_with_effect_and_remedy(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert not sysctl.ensure(FORWARD, tmp_path)
        assert not sysctl.ensure(FORWARD, tmp_path)
    (line,) = logs
    assert line["event"] == "sysctl.not_set"
    assert line["sysctl"] == "net.ipv4.ip_forward"
    assert line["error"] == "No such file or directory"
    assert line["effect"] == FORWARD.effect
    assert "load the kernel module" in line["remedy"]


def test_a_failure_after_a_success_is_logged_again(tmp_path: Path) -> None:
    path = tmp_path / FORWARD.path
    path.parent.mkdir(parents=True)
    with capture_logs() as logs:
        assert not sysctl.ensure(FORWARD, tmp_path)
        path.write_text("1")
        assert sysctl.ensure(FORWARD, tmp_path)
        path.write_text("odd")
        assert not sysctl.ensure(FORWARD, tmp_path)
    assert [line["event"] for line in logs] == ["sysctl.not_set"] * 2


def test_a_parameter_can_name_its_own_remedy(tmp_path: Path) -> None:
    with capture_logs() as logs:
        sysctl.ensure(sysctl.ROUTE_LOCALNET, tmp_path)
    assert logs[0]["remedy"] == sysctl.ROUTE_LOCALNET.remedy
