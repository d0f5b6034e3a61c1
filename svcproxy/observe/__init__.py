"""What operators see of the daemon: metrics, health, and the log."""
