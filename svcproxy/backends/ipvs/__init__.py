"""The IPVS backend: virtual servers in the kernel's load balancer, with ipsets and iptables.

Pure: ``values``. Everything else is described in ``docs/design.md``.
"""
