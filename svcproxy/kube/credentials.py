"""Loads the API server's address and the credentials from a kubeconfig or a service account.

The kubernetes client library is not used here; only credential plugins need it (``plugins``). Token
files (``tokenFile`` and the in-cluster token) are read for every request, because tokens of
projected volumes are renewed every hour. Everything that can be wrong with the files is reported
in one line before the first request.
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
from svcproxy.files import UnusableFileError, read_bounded
from svcproxy.kube.core.apiserver import ApiServer, PemFile, choose_proxy, no_authorization
from svcproxy.kube.source import SourceError, one_line

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


OnRequest = Callable[[str, str, str, float], None]
"""Called with the method, the host and port, the status code ("<error>" without a response) and the
seconds until the response head arrived."""


class ClientSettings(msgspec.Struct, frozen=True):
    """How to reach the API server. All times are in seconds.

    Attributes:
        kubeconfig: the path of a kubeconfig. Without it and without ``master``, the service account
            of the pod is used.
        context: the context of the kubeconfig; empty for its ``current-context``.
        master: overrides the server of the kubeconfig. Without a kubeconfig, no credentials are
            sent.
        connect_seconds: the timeout for establishing a connection.
        list_seconds: the read timeout of a list.
        idle_seconds: the read timeout of a watch; API servers send a bookmark about every minute.
        initial_seconds: the read timeout while a watch sends its initial events.
        backoff_seconds: the longest pause between two attempts.
        empty_list_retry_seconds: the pause before an empty list is requested again.
        service_account: the folder of the service account's token and CA certificate.
        on_request: called after each request, in the thread that sent it.
    """

    kubeconfig: str = ""
    context: str = ""
    master: str = ""
    connect_seconds: float = 5.0
    list_seconds: float = 60.0
    idle_seconds: float = 90.0
    initial_seconds: float = 20.0
    backoff_seconds: float = 30.0
    empty_list_retry_seconds: float = 1.0
    service_account: Path = SERVICE_ACCOUNT
    on_request: OnRequest | None = None


def load_api_server(settings: ClientSettings) -> ApiServer:
    """Load the address of the API server and the credentials.

    Returns:
        The server; its ``authorization`` renews credentials that expire.

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
            f"no in-cluster credentials ({missing}): set --kubeconfig or --master, or run "
            f"in a pod with a service account mounted at {folder}"
        )
    url = _checked_url(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    return ApiServer(
        url=url,
        authorization=_token_from_file(token_file),
        ca=PemFile(str(ca_file), str(ca_file)),
        proxy=_checked_proxy(url, ""),
    )


def _from_kubeconfig(settings: ClientSettings) -> ApiServer:
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
            _token_from_file(kubeconfig.path.parent / token_file)
            if token_file
            else _token_or_password(kubeconfig.text, kubeconfig.path)
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


def _token_or_password(field: Callable[[str, str], str], path: Path) -> Callable[[], str]:
    """Use the token, or else the name and password, that the kubeconfig itself holds."""
    if token := field("user", "token").strip():
        if not _is_token(token):
            raise SourceError(f"kubeconfig {path}: the user's token is not valid: correct the file")
        header = f"Bearer {token}"
    elif username := field("user", "username"):
        pair = f"{username}:{field('user', 'password')}"
        header = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        return no_authorization
    return lambda: header


def _token_from_file(token_file: Path) -> Callable[[], str]:
    """Read the token file for every request: it is small, and requests are rare."""
    _read_token(token_file)
    return lambda: f"Bearer {_read_token(token_file)}"


def _read_token(path: Path) -> str:
    try:
        token = read_bounded(path, limits.TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError, UnusableFileError) as error:
        raise SourceError(
            f"token file {path} cannot be read ({one_line(error)}): restore it"
        ) from error
    if not _is_token(token):
        raise SourceError(f"token file {path} does not hold a token: restore it")
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
        display_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without the password
    except ValueError:
        valid, display_url = False, "URL"
    if not valid:
        raise SourceError(
            f"proxy {display_url} cannot be used: set one like http://10.0.0.1:3128 in proxy-url or "
            f"{'HTTPS_PROXY' if url.startswith('https') else 'HTTP_PROXY'}, or exempt the API "
            "server with NO_PROXY"
        )
    return proxy


def _check_tls(server: ApiServer) -> None:
    """Load the certificates once, to report errors in them before the first connection."""
    if not server.tls:
        return
    # The default context would read all certificates of the system.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if server.ca is not None:
        _check_loadable(
            "CA certificate",
            server.ca,
            partial(context.load_verify_locations, cafile=server.ca.path),
        )
    if server.certificate is not None:
        key = None if server.key is None else server.key.path
        _check_loadable(
            "client certificate",
            server.certificate,
            partial(context.load_cert_chain, server.certificate.path, key),
        )


def _check_loadable(what: str, file: PemFile, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{what} {file.name} cannot be used ({one_line(error)}): correct it in the kubeconfig"
        ) from error
