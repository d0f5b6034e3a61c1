"""The choice of a proxy for an API server."""

import pytest

from svcproxy.kube.core.apiserver import choose_proxy

URL = "https://api.cluster.example:6443"
ENVIRONMENT = {"https": "http://secure:3128", "http": "http://plain:3128"}


@pytest.mark.parametrize(
    ("url", "configured", "environment", "chosen"),
    [
        (URL, "", {}, ""),
        (URL, "", ENVIRONMENT, "http://secure:3128"),
        ("http://api:8080", "", ENVIRONMENT, "http://plain:3128"),
        (URL, "http://mine:1", ENVIRONMENT, "http://mine:1"),
        (URL, "", {"all": "http://any:3128"}, "http://any:3128"),
        (URL, "", {"https": "secure:3128"}, "http://secure:3128"),
        (URL, "", {"http": "http://plain:3128"}, ""),
    ],
)
def test_the_configured_proxy_takes_precedence(
    url: str, configured: str, environment: dict[str, str], chosen: str
) -> None:
    assert choose_proxy(url, configured, environment) == chosen


@pytest.mark.parametrize(
    ("url", "exemptions", "exempt"),
    [
        (URL, "*", True),
        (URL, "other, api.cluster.example", True),
        (URL, "cluster.example", True),
        (URL, ".CLUSTER.example", True),
        (URL, "api.cluster.example:6443", True),
        (URL, "api.cluster.example:443", False),
        (URL, "ster.example", False),
        (URL, " , ", False),
        (URL, "10.0.0.0/8", False),
        ("https://10.1.2.3:6443", "10.0.0.0/8", True),
        ("https://10.1.2.3:6443", "10.1.2.3", True),
        ("https://10.1.2.3:6443", "fd00::/8,11.0.0.0/8", False),
        ("https://[fd00::1]:6443", "fd00::/8", True),
    ],
)
def test_no_proxy_exempts_servers(url: str, exemptions: str, *, exempt: bool) -> None:
    chosen = choose_proxy(url, "http://mine:1", {"no": exemptions})
    assert (chosen == "") == exempt
