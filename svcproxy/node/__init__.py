"""What the node needs besides rules: kernel parameters, and the OOM score of svcproxy."""
