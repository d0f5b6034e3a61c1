"""A fake API server over real HTTP: lists and watches like the real one, and fails on demand."""
