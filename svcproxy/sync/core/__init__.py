"""When to sync, and which Service ports to hold back, without clock or thread."""
