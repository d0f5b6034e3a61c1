"""The names of the nfacct objects in which iptables mode's rules count packets.

They are kube-proxy's (``pkg/proxy/metrics/metrics.go`` of 1.36), so that the counts continue when one
proxy replaces the other.
"""

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
"""Forwarded packets that were dropped because conntrack considers them INVALID."""
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
"""First packets of connections to node ports on a loopback address."""
COUNTERS = (INVALID_DROPPED, LOCALHOST_ACCEPTED)
