"""The settings of the daemon: the ``Config`` value, built from flags and the configuration file.

Text comes in; a frozen ``Config`` or a ``ConfigError`` goes out. Names and defaults are kube-proxy's
(source: cmd/kube-proxy/app/options.go and pkg/proxy/apis/config/v1alpha1/defaults.go of Kubernetes
1.36), except ``--manifests`` and those that begin with ``svcproxy``.
"""

from svcproxy.config.flags import FLAGS, default_of, flags_of, from_settings
from svcproxy.config.model import (
    AVAILABLE_MODES,
    HEALTHZ_PORT,
    METRICS_PORT,
    AccountingLevel,
    Config,
    ConfigError,
    IptablesVariant,
    Loaded,
    LocalMode,
    LogFormat,
    ProxyMode,
)
from svcproxy.config.table import GROUPS

__all__ = [
    "AVAILABLE_MODES",
    "FLAGS",
    "GROUPS",
    "HEALTHZ_PORT",
    "METRICS_PORT",
    "AccountingLevel",
    "Config",
    "ConfigError",
    "IptablesVariant",
    "Loaded",
    "LocalMode",
    "LogFormat",
    "ProxyMode",
    "default_of",
    "flags_of",
    "from_settings",
]
