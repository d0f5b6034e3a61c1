"""Where the API server is and how to prove who we are: kubeconfigs and service accounts.

Both are read here, without the kubernetes client library, which only credential plugins need
(``plugins``). ``tokenFile`` and the in-cluster token are read at every request (tokens of a
projected volume change every hour), and whatever can be wrong with the files is said in one line
before the first request.
"""

import base64
import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec

from svcproxy import limits
from svcproxy.files import UnfitFileError, read_bounded
from svcproxy.kube.core.apiserver import ApiServer, PemFile, choose_proxy, no_authorization
from svcproxy.kube.source import SourceError, one_line

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


OnRequest = Callable[[str, str, str, float], None]
"""Takes a request's method, host (with port), status code ("<error>" without an answer) and the
seconds until the head of the answer came."""


class ConnectionSettings(msgspec.Struct, frozen=True):
    """How to reach the API server; times are in seconds.

    Without ``kubeconfig`` and ``master`` the service account of the pod is used. ``master``
    overrides the server of the kubeconfig; alone, it means a server that asks no credentials.
    ``idle_seconds`` is how long a watch may be silent before it counts as dead: API servers
    send a bookmark about every minute. ``initial_seconds`` is the same for a stream of initial
    events, and ``backoff_seconds`` the longest wait between two attempts. An empty list is
    requested again after ``second_look_seconds``. ``on_request`` is called after each request, in
    the thread that made it.
    """

    kubeconfig: str = ""
    context: str = ""
    master: str = ""
    connect_seconds: float = 5.0
    list_seconds: float = 60.0
    idle_seconds: float = 90.0
    initial_seconds: float = 20.0
    backoff_seconds: float = 30.0
    second_look_seconds: float = 1.0
    service_account: Path = SERVICE_ACCOUNT
    on_request: OnRequest | None = None


def load_api_server(settings: ConnectionSettings) -> ApiServer:
    """Read where the API server is and the credentials for it.

    Returns:
        The server; its ``authorization`` renews itself.

    Raises:
        SourceError: something is missing or malformed; the message names the remedy.
    """
    if settings.kubeconfig:
        server = _from_kubeconfig(settings)
    elif settings.master:
        url = _checked_url(settings.master)
        server = ApiServer(url=url, proxy=_checked_proxy(url, ""))
    else:
        server = _from_service_account(settings.service_account)
    _check_tls(server)
    return server


def _from_service_account(folder: Path) -> ApiServer:
    token_file, ca_file = folder / "token", folder / "ca.crt"
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "")
    missing = ""
    if not (host and port):
        missing = "Service host/port is not set."
    elif not token_file.is_file():
        missing = "Service token file does not exist."
    elif not ca_file.is_file():
        missing = "Service certification file does not exist."
    if missing:
        raise SourceError(
            f"no in-cluster credentials ({missing}): give --kubeconfig or --master, or run "
            f"in a pod with a service account mounted at {folder}"
        )
    url = _checked_url(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    return ApiServer(
        url=url,
        authorization=_following(token_file),
        ca=PemFile(str(ca_file), str(ca_file)),
        proxy=_checked_proxy(url, ""),
    )


def _from_kubeconfig(settings: ConnectionSettings) -> ApiServer:
    from svcproxy.kube.kubeconfig import load_kubeconfig  # noqa: PLC0415 - needs the YAML library

    kubeconfig = load_kubeconfig(Path(settings.kubeconfig).expanduser(), settings.context)
    url = _checked_url(settings.master or kubeconfig.text("cluster", "server"))
    tls = urlsplit(url).scheme == "https"
    certificate = key = None
    if kubeconfig.needs_library:
        from svcproxy.kube.plugins import ask_for_credentials  # noqa: PLC0415 - takes long

        credentials = ask_for_credentials(kubeconfig, settings.context)
        authorization = credentials.authorization
        certificate, key = credentials.certificate, credentials.key
    else:
        token_file = kubeconfig.text("user", "tokenFile")
        authorization = (
            _following(kubeconfig.path.parent / token_file)
            if token_file
            else _constant(kubeconfig.text, kubeconfig.path)
        )
        if tls:
            certificate = kubeconfig.pem("user", "client-certificate")
            key = kubeconfig.pem("user", "client-key")
    return ApiServer(
        url=url,
        authorization=authorization,
        ca=kubeconfig.pem("cluster", "certificate-authority") if tls else None,
        certificate=certificate,
        key=key,
        verify=not kubeconfig.flag("insecure-skip-tls-verify"),
        tls_name=kubeconfig.text("cluster", "tls-server-name"),
        proxy=_checked_proxy(url, kubeconfig.text("cluster", "proxy-url")),
    )


def _constant(field: Callable[[str, str], str], path: Path) -> Callable[[], str]:
    """Take the token, or else the name and password, that stand in the kubeconfig itself."""
    if token := field("user", "token").strip():
        if not _is_token(token):
            raise SourceError(f"kubeconfig {path}: the user's token is none: correct the file")
        header = f"Bearer {token}"
    elif username := field("user", "username"):
        pair = f"{username}:{field('user', 'password')}"
        header = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        return no_authorization
    return lambda: header


def _following(token_file: Path) -> Callable[[], str]:
    """Make every request read the token anew: it is one small file for some requests an hour."""
    _read_token(token_file)
    return lambda: f"Bearer {_read_token(token_file)}"


def _read_token(path: Path) -> str:
    try:
        token = read_bounded(path, limits.TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError, UnfitFileError) as error:
        raise SourceError(
            f"token file {path} cannot be read ({one_line(error)}): restore it"
        ) from error
    if not _is_token(token):
        raise SourceError(f"token file {path} holds no token: restore it")
    return token


def _is_token(text: str) -> bool:
    return bool(text) and all(0x21 <= ord(letter) < 0x7F for letter in text)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SourceError(
            f"API server URL {url!r} is not valid: use one like https://10.0.0.1:6443"
        )
    return url.rstrip("/")


def _checked_proxy(url: str, configured: str) -> str:
    proxy = choose_proxy(url, configured, getproxies())
    try:
        parts = urlsplit(proxy)
        valid = not proxy or (parts.scheme in {"http", "https"} and bool(parts.hostname))
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without a password
    except ValueError:
        valid, shown = False, "URL"
    if not valid:
        raise SourceError(
            f"proxy {shown} cannot be used: give one like http://10.0.0.1:3128 in proxy-url or "
            f"{'HTTPS_PROXY' if url.startswith('https') else 'HTTP_PROXY'}, or exempt the API "
            "server with NO_PROXY"
        )
    return proxy


def _check_tls(server: ApiServer) -> None:
    """Load the certificates once, to say now what every connection would fail with."""
    if not server.tls:
        return
    # Not the default context, which reads all the system's certificates.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if server.ca is not None:
        _try(
            "CA certificate",
            server.ca,
            partial(context.load_verify_locations, cafile=server.ca.path),
        )
    if server.certificate is not None:
        key = None if server.key is None else server.key.path
        _try(
            "client certificate",
            server.certificate,
            partial(context.load_cert_chain, server.certificate.path, key),
        )


def _try(what: str, file: PemFile, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{what} {file.name} cannot be used ({one_line(error)}): correct it in the kubeconfig"
        ) from error
