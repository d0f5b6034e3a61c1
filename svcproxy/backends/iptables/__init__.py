"""iptables mode: kube-proxy's chains, fewer of them, changed one Service port at a time.

The pure part turns finished Service ports into chains (``render``, ``balance``, ``dispatch``,
``static``) and chains into a restore input (``plan``); ``savefile`` reads what the kernel holds.
The shell runs ``iptables-save`` and ``iptables-restore`` (``commands``) and finds out which
variant of iptables the node uses (``variant``). ``backend`` joins the two.

How a fresh process recognises what is ours: the chains named in ``naming`` and every chain of
the nat table with one of kube-proxy's per-service prefixes. That is also what kube-proxy itself
goes by, so either program can take over from the other.
"""
