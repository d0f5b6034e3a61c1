"""The kernel's accounting objects (nfacct) in which iptables mode's rules count packets.

Names as in kube-proxy 1.36 (``pkg/proxy/metrics/metrics.go``), so that a change from the one to
the other goes on counting.
"""

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
"""Forwarded packets that were dropped because conntrack calls them INVALID."""
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
"""First packets of connections to node ports on a loopback address."""
COUNTERS = (INVALID_DROPPED, LOCALHOST_ACCEPTED)
