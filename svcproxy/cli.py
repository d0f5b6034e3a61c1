"""The command line: kube-proxy's flags in, an exit code out.

Flags are spelled and defaulted as kube-proxy's (source: cmd/kube-proxy/app/options.go of
Kubernetes 1.36); flags of our own begin with ``--svcproxy-``, but for ``--manifests``. Parsing
of values is the business of ``svcproxy.config``. Nothing heavy is imported before the daemon
is really to run, so ``--help`` and complaints are quick.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from svcproxy import __version__
from svcproxy.config import SETTINGS, Config, ConfigError, from_settings
from svcproxy.values import Bind, format_duration

_DESCRIPTION = """\
Programs the Services of a Kubernetes cluster into the kernel of this node. Takes the place of
kube-proxy and understands its flags."""

_PERIODS = frozenset({"iptables_sync_period", "iptables_min_sync_period", "config_sync_period"})


class Flag(NamedTuple):
    """One flag as the help shows it; ``placeholder`` is empty for a boolean flag."""

    name: str
    placeholder: str
    help: str


GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "Where Services come from (one of these, or run in a pod)": (
        Flag("kubeconfig", "FILE", "kubeconfig file with the API server and the credentials"),
        Flag("master", "URL", "address of the API server; overrides the one in the kubeconfig"),
        Flag("manifests", "DIR", "folder of YAML or JSON manifests to follow, without any API"),
        Flag("hostname-override", "NAME", "name of this node's Node object, if not the host name"),
        Flag("config-sync-period", "DURATION", "accepted; watches keep the state fresh without it"),
    ),
    "What is programmed": (
        Flag("proxy-mode", "MODE", "kernel mechanism: iptables or nftables"),
        Flag("cluster-cidr", "CIDRS", "address ranges of the cluster's pods, one for each family"),
        Flag(
            "detect-local-mode",
            "MODE",
            "how pod traffic is told: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
        ),
        Flag("pod-bridge-interface", "NAME", "bridge of the pods, for BridgeInterface"),
        Flag("pod-interface-name-prefix", "PREFIX", "as the name says, for InterfaceNamePrefix"),
        Flag("masquerade-all", "", "rewrite the source of all traffic to cluster IPs"),
        Flag("nodeport-addresses", "CIDRS", "local addresses for node ports: CIDRs or 'primary'"),
    ),
    "iptables": (
        Flag("iptables-masquerade-bit", "BIT", "packet mark bit that asks for masquerading, 0-31"),
        Flag("iptables-localhost-nodeports", "", "serve node ports on 127.0.0.1 as well"),
        Flag("iptables-sync-period", "DURATION", "how often the kernel is checked and repaired"),
        Flag("iptables-min-sync-period", "DURATION", "shortest time between two syncs"),
        Flag("svcproxy-iptables-variant", "WHICH", "iptables commands: auto, nft or legacy"),
    ),
    "Serving health and metrics": (
        Flag("healthz-bind-address", "IP:PORT", 'where /healthz and /livez are; "" for nowhere'),
        Flag("metrics-bind-address", "IP:PORT", 'where /metrics is; "" for nowhere'),
        Flag("bind-address-hard-fail", "", "accepted; a port in use always ends the start"),
        Flag("profiling", "", "accepted as false only; there is no profiling"),
    ),
    "Log and others": (
        Flag("v", "NUMBER", "detail of the log; 2 and more show single steps"),
        Flag("logging-format", "FORMAT", "text or json"),
        Flag("feature-gates", "LIST", "accepted and ignored: svcproxy has no feature gates"),
    ),
}
_FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}

# Repeated, these add up, as in kube-proxy; of all others the last one counts
_LISTS = frozenset({"nodeport-addresses", "feature-gates"})

# kube-proxy's other flags. To take them and do nothing would be a lie.
UNSUPPORTED = frozenset(
    """
    bind-address boot-id-file cleanup config conntrack-max-per-core conntrack-min
    conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait conntrack-tcp-timeout-established
    conntrack-udp-timeout conntrack-udp-timeout-stream healthz-port init-only ipvs-exclude-cidrs
    ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout
    ipvs-tcpfin-timeout ipvs-udp-timeout kube-api-burst kube-api-content-type kube-api-qps
    log-flush-frequency log-json-info-buffer-size log-json-split-stream
    log-text-info-buffer-size log-text-split-stream machine-id-file metrics-port oom-score-adj
    show-hidden-metrics-for-version vmodule
    write-config-to
    """.split()  # noqa: SIM905 - as a list it would fill the screen
)


class UsageError(Exception):
    """The command line itself is wrong; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _default(name: str) -> str:
    """Return the default of a flag in the spelling of the command line."""
    field = SETTINGS[name].field
    value = getattr(Config(), field)
    if field in _PERIODS:
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and not isinstance(value, Bind):
        return ",".join(value)
    return "" if value is None else str(value)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser; it yields texts only, and ``None`` for flags that were not given."""
    parser = _Parser(
        prog="svcproxy",
        usage="svcproxy [flags]",
        description=_DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=36, width=100
        ),
        allow_abbrev=False,
        add_help=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = _default(flag.name)
            options: dict[str, Any] = {
                "dest": flag.name,
                "help": f"{flag.help} ({default})" if default else flag.help,
                "action": "append" if flag.name in _LISTS else "store",
                "metavar": flag.placeholder,
            }
            if not flag.placeholder:
                options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
            names = ("-v", "--v") if flag.name == "v" else (f"--{flag.name}",)
            group.add_argument(*names, **options)
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument(
        "--version",
        action="version",
        version=f"svcproxy {__version__}",
        help="show the version and exit",
    )
    return parser


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the ``Config`` that the arguments (without the program name) ask for.

    Args:
        argv: the arguments.
        environ: the environment, to see whether we run in a pod.

    Raises:
        UsageError: a flag is unknown, not supported or lacks its value.
        ConfigError: values are wrong, or nothing says where Services come from.
        SystemExit: ``--help`` or ``--version`` has been answered.
    """
    values, rest = build_parser().parse_known_args([_dashed(argument) for argument in argv])
    if rest:
        raise UsageError(_complaint(rest))
    settings = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if value is not None
    }
    config = from_settings(settings)
    in_pod = environ.get("KUBERNETES_SERVICE_HOST") and environ.get("KUBERNETES_SERVICE_PORT")
    if not (config.kubeconfig or config.master or config.manifests or in_pod):
        raise ConfigError(
            "no source of Services: give --kubeconfig=FILE, give --manifests=DIR, or run in a "
            "pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set here)"
        )
    return config


def _dashed(argument: str) -> str:
    """Let ``--proxy_mode`` mean ``--proxy-mode``, as kube-proxy does."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _complaint(rest: Sequence[str]) -> str:
    """Say what is wrong with arguments that the parser could not place."""
    flag = next((argument for argument in rest if argument.startswith("-")), None)
    if flag is None:
        return f"unexpected argument {rest[0]!r}; every setting is a flag, see --help"
    spelled = flag.partition("=")[0]
    name = spelled.lstrip("-")
    if name in UNSUPPORTED:
        return f"--{name} is not supported in this version yet; leave it out"
    if name in _FLAGS:
        return f"unknown flag {spelled}; did you mean --{name}?"
    near = difflib.get_close_matches(name, [*_FLAGS, "help", "version"], n=1)
    return f"unknown flag {spelled}; " + (f"did you mean --{near[0]}?" if near else "see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop.

    Returns:
        0 after an orderly stop, 1 when it could not start, 2 for a wrong command line.
    """
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
    except UsageError as error:
        return _fail(str(error), code=2)
    except ConfigError as error:
        return _fail(*error.problems)
    except SystemExit as done:
        return int(done.code or 0)
    return _run(config)


def _run(config: Config) -> int:
    from svcproxy import daemon  # noqa: PLC0415 - brings in everything, --help does not need it
    from svcproxy.kube.source import SourceError  # noqa: PLC0415
    from svcproxy.observe.http import BindError  # noqa: PLC0415

    try:
        return daemon.run(config)
    except ConfigError as error:
        return _fail(*error.problems)
    except (daemon.StartupError, SourceError, BindError) as error:
        return _fail(" ".join(str(error).split()))


def _fail(*lines: str, code: int = 1) -> int:
    if sys.stderr is not None:  # else it was closed before we came
        try:
            sys.stderr.write("".join(f"svcproxy: {line}\n" for line in lines))
            sys.stderr.flush()
        except OSError:
            sys.stderr = None  # nobody reads; a second try at exit would spoil the exit code
    return code
