"""IPVS mode: virtual servers in the kernel's load balancer, with ipsets and iptables.

``core`` computes plans from Service ports: the objects that each port needs (``port_state``), their
difference to the kernel (``difference``, ``planner``), the draining of real servers (``draining``),
and what the kernel refused (``refusals``). ``kernel`` executes plans, ``auditor`` verifies the kernel
between resyncs, ``probing`` checks what the kernel offers. ``docs/adr`` has the reasons.
"""
