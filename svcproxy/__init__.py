"""svcproxy: Kubernetes Services in the kernel of one node, changed in O(change)."""

__version__ = "0.1.0"
