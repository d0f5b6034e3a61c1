"""Probing the kernel for IPVS mode."""

from pathlib import Path

import pytest

from svcproxy.backends.base import BackendUnavailable
from svcproxy.backends.ipvs.probing import lacks_scheduler, probe, required_sysctls
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.rule_text import FILTER
from svcproxy.backends.xtables.variant import detect
from svcproxy.model.names import IPFamily
from svcproxy.netlink.generation import has_tables
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.netlink.ipvs import IpvsSocket
from svcproxy.sysctl import ensure
from testbed.netns import NetNS


def state(alone: NetNS, programs: Iptables) -> tuple[object, ...]:
    """The objects that a probe might leave behind."""

    def look() -> tuple[object, ...]:
        ipvs, sets = IpvsSocket(programs.family), IpsetSocket(programs.family)
        seen = ipvs.virtual_servers(), sets.headers()
        ipvs.close()
        sets.close()
        return seen

    return (*alone.call(look), alone.call(lambda: programs.list_chain(FILTER, "KUBE-SVC-PROBE")))


def test_a_kernel_with_all_modules_is_accepted(alone: NetNS, family: IPFamily) -> None:
    programs = Iptables(Variant.LEGACY, family)
    before = state(alone, programs)
    for _ in range(2):
        alone.call(lambda: probe(programs))
        assert state(alone, programs) == before


def test_a_refused_match_is_reported_by_its_module(
    alone: NetNS, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A match that the program does not know looks like a missing module."""
    monkeypatch.setenv("XTABLES_LIBDIR", "/nowhere")
    programs = Iptables(Variant.LEGACY, family)
    with pytest.raises(BackendUnavailable, match=r"xt_set xt_ipvs; load them \(modprobe"):
        alone.call(lambda: probe(programs))


def test_the_variant_is_one_that_the_kernel_supports(alone: NetNS, family: IPFamily) -> None:
    """This kernel has nf_tables without IP tables; the program of the nft variant does not fail."""
    assert alone.run("iptables-nft-save").stdout == ""
    assert not alone.call(lambda: has_tables(family))
    assert alone.call(detect) is Variant.LEGACY


def test_missing_schedulers_are_recognized(ipvs: IpvsSocket) -> None:
    assert not lacks_scheduler(ipvs, "mh")
    assert lacks_scheduler(ipvs, "nosuch")
    assert ipvs.virtual_servers() == {}


def test_parameters_are_set_in_the_namespace(alone: NetNS) -> None:
    sysctls = list(required_sysctls("5.4.0", strict_arp=True))

    def values() -> list[int]:
        return [int(Path("/proc/sys", s.path).read_text(encoding="ascii")) for s in sysctls]

    assert alone.call(values) != [sysctl.value for sysctl in sysctls]
    assert alone.call(lambda: [ensure(sysctl) for sysctl in sysctls]) == [True] * len(sysctls)
    assert alone.call(values) == [sysctl.value for sysctl in sysctls]
