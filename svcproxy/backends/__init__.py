"""The backends: each folder with a ``mode`` module programs one part of the kernel."""
