"""Planning of the recording backend."""
