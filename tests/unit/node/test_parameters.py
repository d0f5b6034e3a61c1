"""Which kernel parameters the flags ask for, by kube-proxy's rules."""

import pytest

from svcproxy.config import Config
from svcproxy.node.core.parameters import conntrack_parameters, max_connections


@pytest.mark.parametrize(
    ("per_core", "minimum", "cpus", "expected"),
    [
        (32768, 131072, 2, 131072),  # the minimum
        (32768, 131072, 8, 262144),
        (32768, 131072, 32, 1 << 20),
        (32768, 131072, 64, 1 << 20),  # the cap
        (1 << 19, 1 << 22, 4, 1 << 20),  # the cap applies before the minimum
        (1, 1 << 21, 4, 1 << 21),
        (0, 131072, 64, 0),  # unchanged
        (32768, 0, 1, 32768),
    ],
)
def test_the_limit_of_connections(per_core: int, minimum: int, cpus: int, expected: int) -> None:
    config = Config(conntrack_max_per_core=per_core, conntrack_min=minimum)
    assert max_connections(config, cpus) == expected


def test_defaults_are_kube_proxys() -> None:
    assert {p.name: p.value for p in conntrack_parameters(Config(), 4)} == {
        "net.netfilter.nf_conntrack_max": 131072,
        "net.netfilter.nf_conntrack_tcp_timeout_established": 86400,
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait": 3600,
    }


def test_each_parameter_can_be_set_and_left_unchanged() -> None:
    everything = Config(
        conntrack_tcp_be_liberal=True,
        conntrack_udp_timeout=40.0,
        conntrack_udp_timeout_stream=200.9,
    )
    found = {
        p.name.removeprefix("net.netfilter.nf_conntrack_"): p.value
        for p in conntrack_parameters(everything, 1)
    }
    assert found["tcp_be_liberal"] == 1
    assert found["udp_timeout"] == 40
    assert found["udp_timeout_stream"] == 200
    nothing = Config(
        conntrack_max_per_core=0,
        conntrack_tcp_timeout_established=0.0,
        conntrack_tcp_timeout_close_wait=0.0,
    )
    assert list(conntrack_parameters(nothing, 1)) == []
