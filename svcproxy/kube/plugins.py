"""Credentials from credential plugins and identity providers, by the kubernetes client library.

This module is loaded only for users whose kubeconfig has a plugin or a provider: importing the
library takes longer than the rest of the daemon's start, and 30 MB. No other module imports the
library. It has no type annotations, so ``Any`` is confined to this module.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from kubernetes.client import Configuration
from kubernetes.config import kube_config
from kubernetes.config.config_exception import ConfigException

from svcproxy.kube.core.apiserver import PemFile
from svcproxy.kube.kubeconfig import Kubeconfig
from svcproxy.kube.source import SourceError, one_line

# Exceptions that the library raises for malformed files, besides its own
_LIBRARY_ERRORS = (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError)


class Credentials(msgspec.Struct, frozen=True):
    """Credentials from a plugin or provider.

    ``authorization`` returns the value of the Authorization header, or an empty text. It renews
    credentials that expire, and raises ``SourceError`` if that fails.
    """

    authorization: Callable[[], str]
    certificate: PemFile | None
    key: PemFile | None


def ask_for_credentials(kubeconfig: Kubeconfig, context: str) -> Credentials:
    """Run the credential plugin of the kubeconfig's user, or ask its identity provider.

    Args:
        kubeconfig: the file, and the part of the context that svcproxy reads itself.
        context: the name of the context; empty for the file's ``current-context``.

    Raises:
        SourceError: the plugin or provider failed; the message names the remedy.
    """
    path, plugin = kubeconfig.path, kubeconfig.plugin
    configuration = Configuration()
    with _logged_errors() as logged:
        try:
            kube_config.load_kube_config(
                config_file=str(path),
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except _LIBRARY_ERRORS as error:
            raise SourceError(f"kubeconfig {path}: {one_line(error)}: correct the file") from error
    if plugin and not (configuration.api_key or configuration.cert_file):
        # The library only logs the failure of a plugin, and continues without credentials.
        reason = "; ".join(logged) or "it gave no credentials"
        raise SourceError(
            f"kubeconfig {path}: exec plugin {plugin['command']!r} failed: {reason}: "
            "run it by hand to see why"
        )

    def authorization() -> str:
        try:
            header: str | None = configuration.get_api_key_with_prefix("BearerToken")
        except _LIBRARY_ERRORS as error:
            raise SourceError(
                f"kubeconfig {path}: credentials cannot be renewed ({one_line(error)}): log in again"
            ) from error
        return header or ""

    return Credentials(authorization, _pem(configuration.cert_file), _pem(configuration.key_file))


def _pem(path: Any) -> PemFile | None:
    return PemFile(str(path), str(path)) if path else None


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collect errors that the library logs, and keep it from configuring the root logger."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    root = logging.getLogger()
    collector = Collector(logging.ERROR)
    root.addHandler(collector)
    try:
        yield messages
    finally:
        root.removeHandler(collector)
