"""Observability: metrics, health checks, status pages and the log."""
