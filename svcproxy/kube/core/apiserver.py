"""An API server, how to reach it and how to prove who we are: values, and the choice of a proxy."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import msgspec


class PemFile(msgspec.Struct, frozen=True):
    """Certificates or a key, in a file that the TLS library can open.

    ``name`` is what people know it by, and ``holder`` whatever has to live as long as the file.
    """

    path: str
    name: str
    holder: object = None


def no_authorization() -> str:
    """Give no header: the server asks for none, or a client certificate says who we are."""
    return ""


class ApiServer(msgspec.Struct, frozen=True, kw_only=True):
    """All that a request needs to know, as a kubeconfig or a service account tells it.

    ``authorization`` gives the header of that name, or nothing; it is called for every request,
    as it may read a token file or run a credential plugin, and raises ``SourceError`` if that
    fails. ``tls_name`` is the name to expect in the server's certificate, if it is not that of
    the URL. Without ``ca`` the system's certificates count. ``proxy`` is the URL of an HTTP
    proxy, or empty.
    """

    url: str
    authorization: Callable[[], str] = no_authorization
    ca: PemFile | None = None
    certificate: PemFile | None = None
    key: PemFile | None = None
    verify: bool = True
    tls_name: str = ""
    proxy: str = ""

    @property
    def tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return urlsplit(self.url).scheme == "https"


def choose_proxy(url: str, configured: str, environment: Mapping[str, str]) -> str:
    """Choose the proxy for a server; nothing means to go there directly.

    Args:
        url: the server's URL.
        configured: the ``proxy-url`` of the kubeconfig, or nothing.
        environment: proxies by scheme (``all`` for any), as ``urllib.request.getproxies`` reads
            them from ``HTTPS_PROXY`` and its like; ``no`` names the hosts and networks that are
            reached without one, whoever asked for it.
    """
    proxy = configured or environment.get(urlsplit(url).scheme) or environment.get("all") or ""
    if not proxy or _is_exempt(url, environment.get("no", "")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_exempt(url: str, exemptions: str) -> bool:
    parts = urlsplit(url)
    host, place = parts.hostname or "", parts.netloc.lower()
    for exemption in (entry.strip().lower() for entry in exemptions.split(",")):
        suffix = exemption.lstrip(".")
        if exemption == "*" or (exemption and _is_inside(host, exemption)):
            return True
        if suffix and any(name == suffix or name.endswith(f".{suffix}") for name in (host, place)):
            return True
    return False


def _is_inside(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:  # one of them is a name
        return False
