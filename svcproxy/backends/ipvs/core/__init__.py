"""The pure part of IPVS mode: from Service ports to plans, and what is known of the kernel."""
