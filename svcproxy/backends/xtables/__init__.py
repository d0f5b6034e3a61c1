"""Reading and writing iptables rules, for every backend that lays some."""
