"""Credentials from programs and identity providers, by way of the kubernetes client library.

Only users whose kubeconfig has such a thing load this module: importing the library takes longer
than all else at the start of the daemon, and 30 MB. No other module knows the library, and it
has no types: ``Any`` ends here.
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

# What the library lets escape from malformed files, besides its own exception.
_LIBRARY_ERRORS = (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError)


class Credentials(msgspec.Struct, frozen=True):
    """What a program or provider gave.

    ``authorization`` gives the header of that name or nothing, and renews what expires; it
    raises ``SourceError``.
    """

    authorization: Callable[[], str]
    certificate: PemFile | None
    key: PemFile | None


def ask_for_credentials(kubeconfig: Kubeconfig, context: str) -> Credentials:
    """Run the plugin of the kubeconfig's user, or ask its provider.

    Args:
        kubeconfig: the file, and the context as far as we read it ourselves.
        context: the name of the context; empty for the file's ``current-context``.

    Raises:
        SourceError: it failed; the message names the remedy.
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
        # The library only logs what went wrong with a plugin, and goes on without credentials.
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
                f"kubeconfig {path}: credentials cannot be renewed ({one_line(error)}): log in anew"
            ) from error
        return header or ""

    return Credentials(authorization, _pem(configuration.cert_file), _pem(configuration.key_file))


def _pem(path: Any) -> PemFile | None:
    return PemFile(str(path), str(path)) if path else None


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collect what the library says only to the root logger, and keep it from configuring it."""
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
