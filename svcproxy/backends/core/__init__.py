"""Settings that all backends share, computed from flags and the Node without I/O."""
