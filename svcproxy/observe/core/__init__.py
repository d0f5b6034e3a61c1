"""HTTP parsing, content negotiation and log text, without I/O."""
