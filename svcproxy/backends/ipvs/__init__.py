"""IPVS mode: virtual servers in the kernel's load balancer, with ipsets and iptables.

The pure part turns finished Service ports into what they need (``layout``, ``chains``), compares
that with the kernel (``planner``, ``compare``) and lets real servers leave (``termination``);
``execute`` carries a plan out on whatever stands for the kernel. ``docs/adr`` has the reasons.
"""
