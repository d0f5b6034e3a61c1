"""Which kernel parameters IPVS mode sets."""

import pytest

from svcproxy.backends.ipvs.probing import kernel_version, required_sysctls


@pytest.mark.parametrize(
    ("release", "expected"),
    [("5.15.0-91-generic", (5, 15)), ("6.1-rc3", (6, 1)), ("4.19.0", (4, 19)), ("odd", (0, 0))],
)
def test_releases_have_versions(release: str, expected: tuple[int, int]) -> None:
    assert kernel_version(release) == expected


def names(release: str, *, strict_arp: bool) -> set[str]:
    return {
        sysctl.name.rpartition(".")[2]
        for sysctl in required_sysctls(release, strict_arp=strict_arp)
    }


def test_what_depends_on_kernel_and_flag() -> None:
    always = {"conntrack", "expire_nodest_conn", "expire_quiescent_template", "ip_forward"}
    assert names("5.9.0", strict_arp=False) == always
    assert names("5.8.18", strict_arp=False) == always | {"conn_reuse_mode"}
    assert names("6.1.0", strict_arp=True) == always | {"arp_ignore", "arp_announce"}
