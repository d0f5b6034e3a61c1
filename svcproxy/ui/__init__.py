"""The page ``/ui`` of the metrics port: server-rendered HTML, in a process of its own (ADR 18)."""
