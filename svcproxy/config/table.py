"""All flags, in the groups and in the order of ``--help``.

Names and defaults are kube-proxy's (source: cmd/kube-proxy/app/options.go of Kubernetes 1.36). Flags
that kube-proxy does not have begin with ``--svcproxy-``, except ``--manifests``.
"""

from collections.abc import Mapping

from svcproxy.config.collect import used_for, used_in
from svcproxy.config.flag import (
    Flag,
    boolean_flag,
    duration_flag,
    flag,
    ignored_flag,
    timeout_flag,
    windows_flag,
)
from svcproxy.config.gates import parse_gates
from svcproxy.config.model import (
    AVAILABLE_MODES,
    Config,
    IptablesVariant,
    LocalMode,
    ProxyMode,
)
from svcproxy.config.parsing import (
    parse_choice,
    parse_cidrs,
    parse_cluster_cidrs,
    parse_float,
    parse_hostname,
    parse_integer,
    parse_interface,
    parse_ip,
    parse_nodeport_addresses,
    parse_scheduler,
    parse_text,
)
from svcproxy.config.table_observing import OBSERVING

_INT32 = 2**31 - 1

GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "Source of Services (one of these, or the service account of a pod)": (
        flag(
            "kubeconfig",
            "FILE",
            "path of a kubeconfig with the API server and the credentials",
            parse=parse_text,
        ),
        flag(
            "master",
            "URL",
            "URL of the API server; overrides the kubeconfig's",
            parse=parse_text,
        ),
        flag(
            "manifests",
            "DIR",
            "folder of YAML or JSON manifests to watch instead of an API server",
            parse=parse_text,
        ),
    ),
    "This node, and its API client": (
        flag(
            "hostname-override",
            "NAME",
            "name of this node's Node object; default: the host name",
            parse=parse_hostname,
        ),
        flag(
            "bind-address",
            "IP",
            "primary IP of this node; an unspecified address means that of the Node object",
            parse=lambda text: parse_ip(text) if text else Config().bind_address,
        ),
        flag(
            "kube-api-content-type",
            "TYPE",
            "accepted without effect: requests and responses are JSON",
            parse=str,
        ),
        flag(
            "kube-api-qps",
            "NUMBER",
            "accepted without effect: watches need few requests",
            parse=parse_float,
        ),
        flag(
            "kube-api-burst",
            "NUMBER",
            "accepted without effect, see --kube-api-qps",
            parse=parse_integer(0, _INT32),
        ),
        duration_flag("config-sync-period", "accepted without effect: there is no cache to replay"),
    ),
    "Proxying": (
        flag(
            "proxy-mode",
            "MODE",
            f"proxy mode: {', '.join(m for m in ProxyMode if m in AVAILABLE_MODES)}",
            parse=parse_choice(ProxyMode, empty=ProxyMode.IPTABLES, available=AVAILABLE_MODES),
        ),
        flag(
            "cluster-cidr",
            "CIDRS",
            "CIDRs of the pods in the cluster, at most one of each IP family;"
            " for local mode ClusterCIDR",
            "cluster_cidrs",
            parse=parse_cluster_cidrs,
            used=used_for(LocalMode.CLUSTER_CIDR),
        ),
        flag(
            "detect-local-mode",
            "MODE",
            "how to detect local traffic, that is, traffic from pods:"
            " ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
            parse=parse_choice(
                LocalMode, empty=LocalMode.CLUSTER_CIDR, available=frozenset(LocalMode)
            ),
        ),
        flag(
            "pod-bridge-interface",
            "NAME",
            "bridge that pods are attached to; for local mode BridgeInterface",
            "bridge_interface",
            parse=parse_interface(15),
            used=used_for(LocalMode.BRIDGE_INTERFACE),
        ),
        # One character less than an interface name: rules append a "+" to the prefix.
        flag(
            "pod-interface-name-prefix",
            "PREFIX",
            "prefix of the names of pods' interfaces; for local mode InterfaceNamePrefix",
            "interface_name_prefix",
            parse=parse_interface(14),
            used=used_for(LocalMode.INTERFACE_NAME_PREFIX),
        ),
        boolean_flag(
            "masquerade-all",
            "masquerade (SNAT) all traffic to cluster IPs",
            "iptables_masquerade_all",
            "nftables_masquerade_all",
        ),
        flag(
            "nodeport-addresses",
            "CIDRS",
            "CIDRs of the node addresses that serve node ports, or 'primary' for the node's primary"
            " addresses; default: all addresses, in nftables mode primary",
            parse=parse_nodeport_addresses,
        ),
    ),
    "iptables mode (the sync periods apply to nftables mode as well)": (
        flag(
            "iptables-masquerade-bit",
            "BIT",
            "bit of the packet mark that requests masquerading, 0 to 31",
            parse=parse_integer(0, 31),
        ),
        boolean_flag("iptables-localhost-nodeports", "serve node ports on 127.0.0.0/8 as well"),
        duration_flag(
            "iptables-sync-period",
            "maximum interval between checks of the rules, which repair them if needed",
            "iptables_sync_period",
            "nftables_sync_period",
        ),
        duration_flag(
            "iptables-min-sync-period",
            "minimum interval between two syncs",
            "iptables_min_sync_period",
            "nftables_min_sync_period",
        ),
        flag(
            "svcproxy-iptables-variant",
            "WHICH",
            "which iptables commands to use: auto, nft or legacy",
            "iptables_variant",
            parse=parse_choice(IptablesVariant, available=frozenset(IptablesVariant)),
        ),
    ),
    "ipvs mode": (
        duration_flag(
            "ipvs-sync-period",
            "maximum interval between checks of the virtual servers, which repair them if needed",
        ),
        duration_flag("ipvs-min-sync-period", "minimum interval between two syncs"),
        flag(
            "ipvs-scheduler",
            "NAME",
            "scheduler of virtual servers: rr, lc, mh and others; default: rr",
            parse=parse_scheduler,
            used=used_in(ProxyMode.IPVS),
        ),
        flag(
            "ipvs-exclude-cidrs",
            "CIDRS",
            "CIDRs of virtual servers that are never removed",
            parse=parse_cidrs,
            used=used_in(ProxyMode.IPVS),
        ),
        boolean_flag("ipvs-strict-arp", "set arp_ignore to 1 and arp_announce to 2"),
        duration_flag(
            "ipvs-tcp-timeout", "timeout of idle IPVS TCP connections; 0s keeps the kernel's value"
        ),
        duration_flag(
            "ipvs-tcpfin-timeout",
            "timeout of IPVS TCP connections after a FIN; 0s keeps the kernel's value",
            "ipvs_tcp_fin_timeout",
        ),
        duration_flag("ipvs-udp-timeout", "timeout of IPVS UDP flows; 0s keeps the kernel's value"),
        timeout_flag(
            "svcproxy-ipvs-graceful-termination-limit",
            "end connections to removed endpoints after this time; 0s: never",
            "ipvs_graceful_termination_limit",
        ),
    ),
    "Connection tracking": (
        flag(
            "conntrack-max-per-core",
            "NUMBER",
            "limit on tracked connections per CPU core; 0 keeps the kernel's limit",
            parse=parse_integer(0, _INT32),
        ),
        flag(
            "conntrack-min",
            "NUMBER",
            "minimum of the limit on tracked connections, regardless of the number of cores",
            parse=parse_integer(0, _INT32),
        ),
        timeout_flag(
            "conntrack-tcp-timeout-established",
            "timeout of idle TCP connections; 0s keeps the kernel's value",
        ),
        timeout_flag(
            "conntrack-tcp-timeout-close-wait",
            "timeout of TCP connections in CLOSE_WAIT; 0s keeps the kernel's value",
        ),
        boolean_flag(
            "conntrack-tcp-be-liberal", "do not treat packets outside the TCP window as INVALID"
        ),
        timeout_flag(
            "conntrack-udp-timeout", "timeout of unanswered UDP flows; 0s keeps the kernel's value"
        ),
        timeout_flag(
            "conntrack-udp-timeout-stream",
            "timeout of answered UDP flows; 0s keeps the kernel's value",
        ),
    ),
    **OBSERVING,
    "General": (
        flag(
            "config",
            "FILE",
            "path of a KubeProxyConfiguration; most flags are ignored if it is given",
            parse=parse_text,
        ),
        flag(
            "write-config-to",
            "FILE",
            "write the settings to this file as a KubeProxyConfiguration, and exit",
            parse=parse_text,
        ),
        boolean_flag(
            "cleanup", "remove all rules and virtual servers of svcproxy and kube-proxy, and exit"
        ),
        boolean_flag("init-only", "do all steps that need full privileges, and exit"),
        flag(
            "oom-score-adj",
            "NUMBER",
            "OOM score adjustment of the process, -1000 to 1000",
            parse=parse_integer(-1000, 1000),
        ),
        flag(
            "feature-gates",
            "LIST",
            "feature gates, Name=true or Name=false; only AllowServiceExternalIPs has an effect",
            parse=parse_gates,
        ),
        ignored_flag(
            "machine-id-file",
            "FILES",
            "accepted without effect: the machine ID is not used",
            parse=str,
        ),
        ignored_flag(
            "boot-id-file", "FILES", "accepted without effect: the boot ID is not used", parse=str
        ),
        *(
            windows_flag(name, "")
            for name in ("windows-service", "enable-dsr", "forward-healthcheck-vip")
        ),
        *(
            windows_flag(name, "TEXT")
            for name in ("source-vip", "network-name", "root-hnsendpoint-name")
        ),
    ),
}
