"""The flags for health, metrics, the admin socket and the log; a part of ``table.py``."""

from collections.abc import Mapping

from svcproxy.config.flag import Flag, boolean_flag, duration_flag, flag, ignored_flag
from svcproxy.config.model import HEALTHZ_PORT, METRICS_PORT, AccountingLevel, LogFormat
from svcproxy.config.parsing import (
    parse_bind,
    parse_choice,
    parse_hidden_version,
    parse_integer,
    parse_quantity,
    parse_services,
    parse_socket_path,
    parse_vmodule,
)

_INT32 = 2**31 - 1

OBSERVING: Mapping[str, tuple[Flag, ...]] = {
    "Health and metrics": (
        flag(
            "healthz-bind-address",
            "IP:PORT",
            'address and port of /healthz, /livez and /readyz; "" disables them',
            parse=lambda text: parse_bind(text, HEALTHZ_PORT),
        ),
        ignored_flag(
            "healthz-port",
            "PORT",
            "deprecated: use --healthz-bind-address; 0 disables the server",
            parse=parse_integer(0, 65535),
            warn="deprecated; use --healthz-bind-address",
        ),
        flag(
            "metrics-bind-address",
            "IP:PORT",
            'address and port of /metrics; "" disables it',
            parse=lambda text: parse_bind(text, METRICS_PORT),
        ),
        ignored_flag(
            "metrics-port",
            "PORT",
            "deprecated: use --metrics-bind-address; 0 disables the server",
            parse=parse_integer(0, 65535),
            warn="deprecated; use --metrics-bind-address",
        ),
        flag(
            "svcproxy-admin-socket",
            "PATH",
            'path of the Unix socket that svcproxy\'s own commands use, for root only; "" disables it',
            "admin_socket",
            parse=parse_socket_path,
        ),
        boolean_flag(
            "svcproxy-ui",
            "serve pages for people at /ui on the metrics port; they are read-only",
            "ui",
        ),
        boolean_flag(
            "bind-address-hard-fail",
            "exit if a health or metrics port is in use; otherwise retry every 5 s",
            "bind_address_hard_fail",
        ),
        boolean_flag(
            "profiling",
            "serve /debug on the metrics port: thread stacks, a CPU profile, the log verbosity",
            "profiling",
        ),
        flag(
            "show-hidden-metrics-for-version",
            "VERSION",
            "accepted without effect: no metric is hidden",
            parse=parse_hidden_version,
        ),
    ),
    "Counting connections": (
        flag(
            "svcproxy-accounting",
            "LEVEL",
            "what the kernel counts for each Service: none, refusals, or also connections",
            "accounting",
            parse=parse_choice(AccountingLevel, available=frozenset(AccountingLevel)),
        ),
        flag(
            "svcproxy-refusal-log-group",
            "NUMBER",
            "nflog group that gets up to 10 packets/s that are refused or dropped; 0 for none",
            "refusal_log_group",
            parse=parse_integer(0, 65535),
        ),
        flag(
            "svcproxy-service-metrics",
            "SERVICES",
            "namespace/name of Services with metrics of their own, separated by commas",
            "service_metrics",
            parse=parse_services,
        ),
    ),
    "Logging": (
        flag(
            "v",
            "NUMBER",
            "log verbosity; 2 and above log each step",
            "verbosity",
            parse=parse_integer(0, _INT32),
        ),
        flag(
            "vmodule",
            "PATTERN=N,...",
            "accepted without effect: there are no Go files",
            parse=parse_vmodule,
            warn="ignored: there are no Go files; use -v",
        ),
        flag(
            "logging-format",
            "FORMAT",
            "log format: text or json",
            parse=parse_choice(LogFormat, available=frozenset(LogFormat)),
        ),
        duration_flag(
            "log-flush-frequency", "accepted without effect: log lines are written immediately"
        ),
        boolean_flag(
            "log-text-split-stream",
            "accepted without effect: all lines go to stderr",
            warn="ignored: all lines go to stderr",
        ),
        flag(
            "log-text-info-buffer-size",
            "SIZE",
            "accepted without effect: log lines are written immediately",
            parse=parse_quantity,
        ),
        boolean_flag(
            "log-json-split-stream",
            "accepted without effect: all lines go to stderr",
            warn="ignored: all lines go to stderr",
        ),
        flag(
            "log-json-info-buffer-size",
            "SIZE",
            "accepted without effect: log lines are written immediately",
            parse=parse_quantity,
        ),
    ),
}
