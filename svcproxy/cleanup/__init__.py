"""Removing stale kernel objects of other modes, of the other iptables variant, and of kube-proxy."""
