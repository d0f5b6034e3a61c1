"""Which minimum times between two syncs are taken literally."""

from svcproxy.config import Config, ProxyMode


def test_the_default_minimum_is_adapted_to_what_syncs_take() -> None:
    assert Config().adapts_sync_pause
    assert Config(proxy_mode=ProxyMode.NFTABLES).adapts_sync_pause


def test_a_minimum_of_the_operators_own_is_kept() -> None:
    assert not Config(iptables_min_sync_period=5.0).adapts_sync_pause
    assert not Config(proxy_mode=ProxyMode.NFTABLES, nftables_min_sync_period=0.5).adapts_sync_pause
