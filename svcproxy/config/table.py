"""All flags, in the groups and the order in which ``--help`` shows them.

Pure. They are spelled and defaulted as kube-proxy's (source: cmd/kube-proxy/app/options.go of
Kubernetes 1.36); flags of our own begin with ``--svcproxy-``, but for ``--manifests``.
"""

from collections.abc import Mapping

from svcproxy.config.collect import used_for, used_in
from svcproxy.config.flag import Flag, flag, inert, period, switch, timeout, windows
from svcproxy.config.gates import parse_gates
from svcproxy.config.model import (
    AVAILABLE_MODES,
    HEALTHZ_PORT,
    METRICS_PORT,
    Config,
    IptablesVariant,
    LocalMode,
    LogFormat,
    ProxyMode,
)
from svcproxy.values import (
    parse_bind,
    parse_choice,
    parse_cidrs,
    parse_cluster_cidrs,
    parse_float,
    parse_hidden_version,
    parse_hostname,
    parse_integer,
    parse_interface,
    parse_ip,
    parse_nodeport_addresses,
    parse_quantity,
    parse_scheduler,
    parse_text,
    parse_vmodule,
)

_INT32 = 2**31 - 1

GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "Where Services come from (one of these, or run in a pod)": (
        flag(
            "kubeconfig",
            "FILE",
            "kubeconfig file with the API server and the credentials",
            parse=parse_text,
        ),
        flag(
            "master",
            "URL",
            "address of the API server; overrides the one in the kubeconfig",
            parse=parse_text,
        ),
        flag(
            "manifests",
            "DIR",
            "folder of YAML or JSON manifests to follow, without any API",
            parse=parse_text,
        ),
    ),
    "This node, and its way to the API": (
        flag(
            "hostname-override",
            "NAME",
            "name of this node's Node object, if not the host name",
            parse=parse_hostname,
        ),
        flag(
            "bind-address",
            "IP",
            "primary address of this node, if not that of its Node object",
            parse=lambda text: parse_ip(text) if text else Config().bind_address,
        ),
        flag("kube-api-content-type", "TYPE", "accepted; svcproxy speaks JSON", parse=str),
        flag("kube-api-qps", "NUMBER", "accepted; watches need few requests", parse=parse_float),
        flag(
            "kube-api-burst",
            "NUMBER",
            "accepted, see --kube-api-qps",
            parse=parse_integer(0, _INT32),
        ),
        period("config-sync-period", "accepted; watches keep the state fresh without it"),
    ),
    "What is programmed": (
        flag(
            "proxy-mode",
            "MODE",
            f"kernel mechanism: {', '.join(m for m in ProxyMode if m in AVAILABLE_MODES)}",
            parse=parse_choice(ProxyMode, empty=ProxyMode.IPTABLES, available=AVAILABLE_MODES),
        ),
        flag(
            "cluster-cidr",
            "CIDRS",
            "address ranges of the cluster's pods, one for each family",
            "cluster_cidrs",
            parse=parse_cluster_cidrs,
            used=used_for(LocalMode.CLUSTER_CIDR),
        ),
        flag(
            "detect-local-mode",
            "MODE",
            "how pod traffic is told: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            parse=parse_choice(
                LocalMode, empty=LocalMode.CLUSTER_CIDR, available=frozenset(LocalMode)
            ),
        ),
        flag(
            "pod-bridge-interface",
            "NAME",
            "bridge of the pods, for BridgeInterface",
            "bridge_interface",
            parse=parse_interface(15),
            used=used_for(LocalMode.BRIDGE_INTERFACE),
        ),
        # One character less than an interface name: the kernel tools want a "+" behind it.
        flag(
            "pod-interface-name-prefix",
            "PREFIX",
            "as the name says, for InterfaceNamePrefix",
            "interface_name_prefix",
            parse=parse_interface(14),
            used=used_for(LocalMode.INTERFACE_NAME_PREFIX),
        ),
        switch(
            "masquerade-all",
            "rewrite the source of all traffic to cluster IPs",
            "iptables_masquerade_all",
            "nftables_masquerade_all",
        ),
        flag(
            "nodeport-addresses",
            "CIDRS",
            "addresses of node ports: CIDRs or 'primary', nftables mode's default",
            parse=parse_nodeport_addresses,
        ),
    ),
    "iptables mode; the two periods hold for nftables mode, too": (
        flag(
            "iptables-masquerade-bit",
            "BIT",
            "packet mark bit that asks for masquerading, 0-31",
            parse=parse_integer(0, 31),
        ),
        switch("iptables-localhost-nodeports", "serve node ports on 127.0.0.1 as well"),
        period(
            "iptables-sync-period",
            "how often the kernel is checked and repaired",
            "iptables_sync_period",
            "nftables_sync_period",
        ),
        period(
            "iptables-min-sync-period",
            "shortest time between two syncs",
            "iptables_min_sync_period",
            "nftables_min_sync_period",
        ),
        flag(
            "svcproxy-iptables-variant",
            "WHICH",
            "iptables commands: auto, nft or legacy",
            "iptables_variant",
            parse=parse_choice(IptablesVariant, available=frozenset(IptablesVariant)),
        ),
    ),
    "ipvs mode": (
        period("ipvs-sync-period", "how often the kernel is checked and repaired"),
        period("ipvs-min-sync-period", "shortest time between two syncs"),
        flag(
            "ipvs-scheduler",
            "NAME",
            "how endpoints are chosen: rr, lc, mh and others; rr if not given",
            parse=parse_scheduler,
            used=used_in(ProxyMode.IPVS),
        ),
        flag(
            "ipvs-exclude-cidrs",
            "CIDRS",
            "leave virtual servers in these ranges alone",
            parse=parse_cidrs,
            used=used_in(ProxyMode.IPVS),
        ),
        switch("ipvs-strict-arp", "answer ARP for addresses of the asked interface only"),
        period("ipvs-tcp-timeout", "forget idle TCP connections after this; 0s: leave as it is"),
        period("ipvs-tcpfin-timeout", "the same for closing ones", "ipvs_tcp_fin_timeout"),
        period("ipvs-udp-timeout", "the same for UDP"),
        timeout(
            "svcproxy-ipvs-graceful-termination-limit",
            "cut connections to removed endpoints after this; 0s: never",
            "ipvs_graceful_termination_limit",
        ),
    ),
    "Connection tracking of the node": (
        flag(
            "conntrack-max-per-core",
            "NUMBER",
            "connections to track per CPU; 0: leave the limit as it is",
            parse=parse_integer(0, _INT32),
        ),
        flag(
            "conntrack-min",
            "NUMBER",
            "connections to track at least",
            parse=parse_integer(0, _INT32),
        ),
        timeout(
            "conntrack-tcp-timeout-established",
            "forget idle TCP connections after this; 0s: leave as it is",
        ),
        timeout(
            "conntrack-tcp-timeout-close-wait",
            "forget half-closed ones after this; 0s: leave as it is",
        ),
        switch("conntrack-tcp-be-liberal", "take packets outside the TCP window for valid ones"),
        timeout(
            "conntrack-udp-timeout", "forget unanswered UDP flows after this; 0s: leave as it is"
        ),
        timeout(
            "conntrack-udp-timeout-stream", "forget answered ones after this; 0s: leave as it is"
        ),
    ),
    "Serving health and metrics": (
        flag(
            "healthz-bind-address",
            "IP:PORT",
            'where /healthz and /livez are; "" for nowhere',
            parse=lambda text: parse_bind(text, HEALTHZ_PORT),
        ),
        inert(
            "healthz-port",
            "PORT",
            "deprecated: use --healthz-bind-address; 0 for nowhere",
            parse=parse_integer(0, 65535),
            warn="deprecated; use --healthz-bind-address",
        ),
        flag(
            "metrics-bind-address",
            "IP:PORT",
            'where /metrics is; "" for nowhere',
            parse=lambda text: parse_bind(text, METRICS_PORT),
        ),
        inert(
            "metrics-port",
            "PORT",
            "deprecated: use --metrics-bind-address; 0 for nowhere",
            parse=parse_integer(0, 65535),
            warn="deprecated; use --metrics-bind-address",
        ),
        switch(
            "bind-address-hard-fail",
            "end if a health or metrics port is in use; otherwise it is tried again every 5 s",
            "bind_address_hard_fail",
        ),
        switch(
            "profiling",
            "serve /debug: stacks of threads, a sampling profile, the log's detail",
            "profiling",
        ),
        flag(
            "show-hidden-metrics-for-version",
            "VERSION",
            "accepted; no metric is hidden",
            parse=parse_hidden_version,
        ),
    ),
    "Log": (
        flag(
            "v",
            "NUMBER",
            "detail of the log; 2 and more show single steps",
            "verbosity",
            parse=parse_integer(0, _INT32),
        ),
        flag(
            "vmodule",
            "PATTERN=N,...",
            "accepted; there are no Go files",
            parse=parse_vmodule,
            warn="there are no Go files; ignored, use -v",
        ),
        flag(
            "logging-format",
            "FORMAT",
            "text or json",
            parse=parse_choice(LogFormat, available=frozenset(LogFormat)),
        ),
        period("log-flush-frequency", "accepted; lines are never held back"),
        switch(
            "log-text-split-stream",
            "accepted; all lines go to stderr",
            warn="all lines go to stderr; ignored",
        ),
        flag(
            "log-text-info-buffer-size",
            "SIZE",
            "accepted; lines are never held back",
            parse=parse_quantity,
        ),
        switch(
            "log-json-split-stream",
            "accepted; all lines go to stderr",
            warn="all lines go to stderr; ignored",
        ),
        flag(
            "log-json-info-buffer-size",
            "SIZE",
            "accepted; lines are never held back",
            parse=parse_quantity,
        ),
    ),
    "The run as such": (
        flag(
            "config",
            "FILE",
            "KubeProxyConfiguration; most flags are ignored then",
            parse=parse_text,
        ),
        flag(
            "write-config-to",
            "FILE",
            "write the settings there as a KubeProxyConfiguration, and exit",
            parse=parse_text,
        ),
        switch("cleanup", "remove all rules, those of kube-proxy included, and exit"),
        switch("init-only", "do what needs full privileges, and exit"),
        flag(
            "oom-score-adj",
            "NUMBER",
            "how readily the kernel ends the process, -1000 to 1000",
            parse=parse_integer(-1000, 1000),
        ),
        flag(
            "feature-gates",
            "LIST",
            "Kubernetes feature gates; AllowServiceExternalIPs=false has an effect",
            parse=parse_gates,
        ),
        inert(
            "machine-id-file",
            "FILES",
            "accepted; nothing here asks for the machine's id",
            parse=str,
        ),
        inert("boot-id-file", "FILES", "accepted; nothing here asks for the boot's id", parse=str),
        *(
            windows(name, "")
            for name in ("windows-service", "enable-dsr", "forward-healthcheck-vip")
        ),
        *(
            windows(name, "TEXT")
            for name in ("source-vip", "network-name", "root-hnsendpoint-name")
        ),
    ),
}
