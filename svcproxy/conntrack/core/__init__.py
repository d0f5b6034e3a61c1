"""Which conntrack entries are stale, decided without I/O."""
