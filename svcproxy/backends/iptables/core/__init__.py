"""The functional core of iptables mode: rendering, comparing and planning chains, without I/O."""
