"""An API server over real HTTP that lists and watches as a real one, and fails on demand."""
