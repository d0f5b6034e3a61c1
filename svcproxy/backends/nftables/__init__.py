"""nftables mode: Services as elements of shared sets and maps, changed over netlink.

``core`` is pure: ``render`` turns one Service port into elements, ``chains``, ``tier_chains`` and
``table_sets`` define the chains and sets that all Services share, and ``plan`` computes what to
change. ``backend``, ``table``, ``client`` and ``watcher`` access the kernel. ADR 5 says why the
table looks the way it does.
"""
