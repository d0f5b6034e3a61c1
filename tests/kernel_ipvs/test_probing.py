"""Whether the kernel can run IPVS mode."""

import pytest

from svcproxy.backends.base import BackendUnavailable
from svcproxy.backends.ipvs.connection import Ipvs
from svcproxy.backends.ipvs.probing import probe, scheduler_is_missing
from svcproxy.backends.ipvs.sysctls import ensure, wanted
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.model.names import IPFamily
from testbed.netns import NetNS


def state(namespace: NetNS) -> list[str]:
    """All that a probe might leave behind."""
    commands = ("ipvsadm -Sn", "ipset list -n", "iptables-legacy -S", "ip6tables-legacy -S")
    return [namespace.run(*command.split()).stdout for command in commands]


def test_a_kernel_with_all_modules_will_do(namespace: NetNS, family: IPFamily) -> None:
    programs = Iptables(Variant.LEGACY, family)
    before = state(namespace)
    for _ in range(2):
        namespace.call(lambda: probe(programs))
        assert state(namespace) == before


def test_a_refused_rule_is_told_by_its_module(
    namespace: NetNS, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool does not know the match, which shows in the same way as a missing module."""
    monkeypatch.setenv("XTABLES_LIBDIR", "/nowhere")
    programs = Iptables(Variant.LEGACY, family)
    with pytest.raises(BackendUnavailable, match=r"xt_set xt_ipvs; load them \(modprobe"):
        namespace.call(lambda: probe(programs))


def test_schedulers_are_there_or_missing(ipvs: Ipvs) -> None:
    assert not scheduler_is_missing(ipvs, "mh")
    assert scheduler_is_missing(ipvs, "nosuch")
    assert ipvs.virtual_servers() == {}


def test_parameters_are_set_in_the_namespace(namespace: NetNS) -> None:
    sysctls = list(wanted("5.4.0", strict_arp=True))

    def values() -> list[str]:
        return [namespace.run("sysctl", "-n", s.name).stdout.strip() for s in sysctls]

    assert values() != [sysctl.value for sysctl in sysctls]
    assert namespace.call(lambda: ensure(sysctls)) == []
    assert values() == [sysctl.value for sysctl in sysctls]
    assert namespace.run("sysctl", "-n", "net.ipv4.vs.conn_reuse_mode").stdout.strip() == "0"
