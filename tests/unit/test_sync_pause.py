"""When the pause between syncs adapts to their duration."""

from svcproxy.config import Config, ProxyMode


def test_the_default_minimum_adapts() -> None:
    assert Config().adapts_sync_pause
    assert Config(proxy_mode=ProxyMode.NFTABLES).adapts_sync_pause


def test_a_configured_minimum_is_exact() -> None:
    assert not Config(iptables_min_sync_period=5.0).adapts_sync_pause
    assert not Config(proxy_mode=ProxyMode.NFTABLES, nftables_min_sync_period=0.5).adapts_sync_pause
