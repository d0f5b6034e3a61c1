"""Every limit on what comes in from outside, in one place.

Each constant bounds one input: its size, depth, count or time. What happens at the limit, and
which counter shows it, is in the table of ``docs/limits.md``; a test compares that table with this
module. Limits of a single protocol's wire format (a netlink buffer, say) stay with the code that
speaks it.
"""

# API server: lists and watches, svcproxy.kube

# HTTP: the metrics, health and health-check node port servers, svcproxy.observe

# The log: svcproxy.observe.log

# The threads of the daemon, in svcproxy.threads

# Files: manifests, kubeconfig, KubeProxyConfiguration

# Kernel: netlink, proc files, output of iptables-save
