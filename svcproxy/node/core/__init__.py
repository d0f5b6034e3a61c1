"""Which kernel parameters the flags ask for, without I/O."""
