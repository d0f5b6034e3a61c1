"""What the node itself needs besides rules: kernel parameters, and the process's own standing."""
