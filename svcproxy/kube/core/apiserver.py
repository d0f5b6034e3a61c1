"""The address of an API server and its credentials, as values, and the choice of a proxy."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import msgspec


class PemFile(msgspec.Struct, frozen=True):
    """Certificates or a key, in a file that the TLS library can open.

    ``name`` identifies the file in messages. ``holder`` must live as long as the file is used.
    """

    path: str
    name: str
    holder: object = None


def no_authorization() -> str:
    """Return no Authorization header: the server needs none, or there is a client certificate."""
    return ""


class ApiServer(msgspec.Struct, frozen=True, kw_only=True):
    """An API server as a kubeconfig or a service account describes it.

    Attributes:
        url: the base URL.
        authorization: returns the value of the Authorization header, or an empty text. It is called
            for every request, because it may read a token file or run a credential plugin; it
            raises ``SourceError`` if that fails.
        ca: the CA certificates; ``None`` for the system's.
        certificate: the client certificate.
        key: the key of the client certificate.
        verify: whether the server's certificate is verified.
        tls_name: the name that the server's certificate must have, if not the host of the URL.
        proxy: the URL of an HTTP proxy; empty for none.
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
        """Whether the API server is reached over TLS."""
        return urlsplit(self.url).scheme == "https"


def choose_proxy(url: str, configured: str, environment: Mapping[str, str]) -> str:
    """Choose the proxy for an API server; an empty text means a direct connection.

    Args:
        url: the URL of the API server.
        configured: the ``proxy-url`` of the kubeconfig; may be empty.
        environment: proxies by scheme (``all`` for any), as ``urllib.request.getproxies`` reads
            them from ``HTTPS_PROXY`` and similar variables. ``no`` lists hosts and networks that
            are always reached directly.
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
        if exemption == "*" or (exemption and _is_in_network(host, exemption)):
            return True
        if suffix and any(name == suffix or name.endswith(f".{suffix}") for name in (host, place)):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:  # one of them is a host name
        return False
