"""iptables mode: kube-proxy's chains, but fewer of them, changed one Service port at a time.

The pure modules are in ``core``: ``render``, ``balance``, ``dispatch`` and ``static`` turn finished
Service ports into chains; ``planner`` compares chains and returns a ``plan``; ``restore_inputs``
turns a plan into text for iptables-restore. ``backend`` runs the programs: it reads with
iptables-save, and executes plans with iptables-restore and ipset. ``probing`` finds out which
features the kernel has, and ``bisection`` leaves out Service ports that the kernel refuses.

How a new process recognises svcproxy's chains: by the names in ``core.naming`` and, in the nat
table, by kube-proxy's five prefixes of per-Service chains. kube-proxy uses the same rule, so either
program can take over from the other.
"""
