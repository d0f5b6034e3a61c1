"""Printers and the packet tracer: pure functions of rules and packets."""
