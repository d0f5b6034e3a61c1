"""Kernel parameters, in files of the tests' own."""

from pathlib import Path

import pytest

from svcproxy.backends.ipvs.sysctls import Sysctl, ensure, version, wanted


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    (tmp_path / "right").write_text("1\n")
    (tmp_path / "right").chmod(0o444)
    (tmp_path / "wrong").write_text("0\n")
    before = (tmp_path / "right").stat().st_mtime_ns
    assert ensure([Sysctl("right", "1", ""), Sysctl("wrong", "1", "")], tmp_path) == []
    assert (tmp_path / "wrong").read_text() == "1"
    assert (tmp_path / "right").stat().st_mtime_ns == before


def test_a_problem_says_what_why_and_the_effect(tmp_path: Path) -> None:
    (problem,) = ensure([Sysctl("net/ipv4/vs/conntrack", "1", "masquerading fails")], tmp_path)
    assert str(problem) == (
        "cannot set net.ipv4.vs.conntrack to 1: No such file or directory; masquerading fails"
    )


@pytest.mark.parametrize(
    ("release", "expected"),
    [("5.15.0-91-generic", (5, 15)), ("6.1-rc3", (6, 1)), ("4.19.0", (4, 19)), ("odd", (0, 0))],
)
def test_releases_have_versions(release: str, expected: tuple[int, int]) -> None:
    assert version(release) == expected


def names(release: str, *, strict_arp: bool) -> set[str]:
    return {sysctl.name.rpartition(".")[2] for sysctl in wanted(release, strict_arp=strict_arp)}


def test_what_depends_on_kernel_and_flag() -> None:
    always = {"conntrack", "expire_nodest_conn", "expire_quiescent_template", "ip_forward"}
    assert names("5.9.0", strict_arp=False) == always
    assert names("5.8.18", strict_arp=False) == always | {"conn_reuse_mode"}
    assert names("6.1.0", strict_arp=True) == always | {"arp_ignore", "arp_announce"}
