"""What another mode, the other variant of iptables, or kube-proxy has left in the kernel."""
