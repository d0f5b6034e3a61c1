"""Reading and writing iptables rules, shared by the backends that use iptables."""
