"""Decoding and validating API objects, and the list-and-watch state machine, without I/O."""
