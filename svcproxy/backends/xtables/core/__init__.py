"""iptables rules as values and text, without running iptables."""
