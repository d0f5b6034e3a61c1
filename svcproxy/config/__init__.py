"""What the daemon is told to do: the ``Config`` value and how it comes from flags.

Pure: text comes in, a frozen ``Config`` or a ``ConfigError`` goes out. Names and defaults are
kube-proxy's (source: cmd/kube-proxy/app/options.go and pkg/proxy/apis/config/v1alpha1/defaults.go
of Kubernetes 1.36), but for what begins with ``svcproxy`` and for ``manifests``.
"""

from svcproxy.config.flags import FLAGS, default_of, flags_of, from_settings
from svcproxy.config.model import (
    AVAILABLE_MODES,
    HEALTHZ_PORT,
    METRICS_PORT,
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
